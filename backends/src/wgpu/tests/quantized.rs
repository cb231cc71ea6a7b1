//! Products with NF4: decoded by the product itself, or dequantized before it.

use super::*;

const QUANTIZED: [WeightFormat; 2] = [FORMATS[1], FORMATS[2]];

#[test]
fn few_rows_have_the_bits_that_they_have_among_many_and_need_no_workspace() {
    // Most widths put the end of a row inside a block of scales.
    for [out, width] in [[1, 1], [5, 7], [40, 516], [96, 128], [260, 65]] {
        for (way, format) in [Way::Plain, Way::Tiled].into_iter().flat_map(|way| QUANTIZED.map(|f| (way, f)))
        {
            let Some(mut wgpu) = opened() else { return };
            wgpu.way = way;
            let weight = weight(&wgpu, &random(out * width, 1), [out, width], format);
            let few = way.decoded_rows_max() as usize;
            let workspace = || wgpu.memory().category(Category::Workspace).peak;
            let directions = [(Direction::Forward, width, out), (Direction::Backward, out, width)];
            let product = |rows: usize| {
                directions.map(|(direction, from, _)| {
                    linear(&wgpu, &weight, &random(rows * from, 2), direction, Epilogue::None)
                })
            };
            let alone = product(few);
            assert_eq!(workspace(), 0, "{way:?} {format:?}");
            let among = product(few + 1);
            assert!(workspace() > 0, "{way:?} {format:?}");
            for ((direction, _, to), (alone, among)) in directions.iter().zip(alone.iter().zip(&among)) {
                assert_eq!(bits(alone), bits(&among[..few * to]), "{way:?} {format:?} {direction:?}");
            }
        }
    }
}

#[test]
fn quantized_weights_in_pieces_multiply_as_whole_ones() {
    let [out, width] = [400, 256];
    let values = random(out * width, 1);
    // 64 rows are the fewest that begin with a block of scales: 64 KiB in f32.
    let lower = |gpu: &mut Gpu| gpu.limits.max_storage_buffer_binding_size = 70 << 10;
    let (Some(whole), Some(pieces)) = (opened(), opened_with(&DeviceRequest::default(), lower)) else {
        return;
    };
    let few = Way::Plain.decoded_rows_max() as usize;
    for (rows, format) in [few, few + 1].into_iter().flat_map(|rows| QUANTIZED.map(|format| (rows, format))) {
        let (x, dy) = (random(rows * width, 2), random(rows * out, 3));
        let weights = [&whole, &pieces].map(|wgpu| weight(wgpu, &values, [out, width], format));
        assert!(weights[1].inner::<DeviceWeight>().unwrap().pieces.len() > 5);
        let epilogue = Epilogue::BiasActivation(gelu::Kind::Exact);
        let forward = [(&whole, &weights[0]), (&pieces, &weights[1])]
            .map(|(wgpu, weight)| linear(wgpu, weight, &x, Direction::Forward, epilogue));
        assert_eq!(bits(&forward[0]), bits(&forward[1]));
        let w = pieces.read_weight(&weights[1]).unwrap();
        let backward = linear(&pieces, &weights[1], &dy, Direction::Backward, Epilogue::None);
        assert_product(&backward, &dy, |t, j| w[t * width + j], [rows, width, out]);
    }
}
