//! Devices that compute on the processor.

use super::*;

#[test]
fn a_software_device_refuses_texts_that_its_loops_would_end_in_and_computes_those_below() {
    let Some(wgpu) = opened() else { return };
    if !wgpu.gpu.is_software {
        return;
    }
    let forward = |backend: &dyn Backend, tokens: usize| {
        let (qkv, texts) = (random(tokens * 3 * 64, 1), [0, tokens as u32]);
        let args = attention::Args {
            tokens: tokens as u32,
            texts: 1,
            longest: tokens as u32,
            heads: 1,
            kv_heads: 1,
            head_dim: 64,
            stride: 192,
            query: 0,
            key: 64,
            value: 128,
            scale: 0.125,
            ..bytemuck::Zeroable::zeroed()
        };
        let hold = |bytes: &[u8]| {
            let buffer = backend.allocate_unfilled(bytes.len(), Category::Activations).unwrap();
            backend.upload(bytes, buffer.all()).unwrap();
            buffer
        };
        let rows = vec![0u32; 2 * tokens];
        let [qkv, texts, rows, out, sums] = [
            hold(bytemuck::cast_slice(&qkv)),
            hold(bytemuck::cast_slice(&texts)),
            hold(bytemuck::cast_slice(&rows)),
            hold(&vec![0xff; tokens * 64 * 4]),
            hold(&vec![0xff; tokens * 4]),
        ];
        let views = [qkv.all(), texts.all(), rows.all(), out.all(), sums.all()];
        backend.launch(&Launch::new(&attention::FORWARD, &args, &views))?;
        let mut got = vec![0.0f32; tokens * 64];
        backend.download(out.all(), bytemuck::cast_slice_mut(&mut got))?;
        Ok::<_, Error>(got)
    };
    let cpu = crate::cpu::Cpu::new(&DeviceRequest::default()).unwrap();
    let most = steps::MOST as usize / 53;
    let (got, wanted) = (forward(&wgpu, most).unwrap(), forward(&cpu, most).unwrap());
    for (i, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
        assert!((got - wanted).abs() <= 1e-5, "element {i}: {got}, {wanted}");
    }
    let refused = forward(&wgpu, most + 1).unwrap_err();
    assert!(matches!(refused, Error::TooManyRounds { what: "attention.forward", .. }), "{refused}");
}
