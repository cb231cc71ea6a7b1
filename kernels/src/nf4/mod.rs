//! Four-bit NormalFloat, with double quantization of the block scales.
//!
//! ```text
//! values   blocks of 64 consecutive elements (the last may be short), row-major
//! absmax   one f32 a block; double: 8-bit codes of (absmax − offset), blocks of 256, one f32 a block of those
//! packed   two codes a byte, the first element in the high nibble
//! x ≈ CODE[code]·absmax,   absmax = map[code8]·nested_absmax + offset
//! ```
//!
//! Source: Dettmers et al. 2023 (QLoRA), bit for bit as bitsandbytes 0.50 stores it.

mod cpu;
pub mod double;
pub mod reference;

use crate::kernel::Grid;
use crate::{Arguments, Binding, Entry, Kernel, arguments};

pub use double::{DoubleQuantized, dynamic_map};
pub use reference::{dequantize, quantize};

/// Elements that share a scale.
pub const BLOCK: usize = 64;

/// The sixteen values: quantiles of the normal distribution, 0 and ±1 among them.
pub const CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

arguments! {
    /// Scalars of `dequantize_double`.
    pub struct DoubleArgs {
        pub count: u32,
        /// Mean of the scales.
        pub offset: f32,
    }
}

arguments! {
    /// Scalars of `dequantize`.
    pub struct Args {
        pub count: u32,
    }
}

/// `packed` u8 [⌈count/2⌉]; `absmax` [⌈count/64⌉]; `out` [count].
pub static DEQUANTIZE: Entry = Entry {
    name: "nf4.dequantize",
    bindings: &[Binding::read_u8("packed"), Binding::read("absmax"), Binding::output("out")],
    arguments: Args::FIELDS,
    cuda: |args| Grid::each(Args::of(args).count.div_ceil(8)),
    wgsl: |args| Args::of(args).count.div_ceil(8).div_ceil(256),
    cpu: cpu::dequantize,
};

/// `packed` u8 [⌈count/2⌉]; `codes` u8 [⌈count/64⌉] and `nested_absmax` [⌈count/64/256⌉] as in [`DoubleQuantized`];
/// `map` [256] is [`dynamic_map`]; `out` [count].
pub static DEQUANTIZE_DOUBLE: Entry = Entry {
    name: "nf4.dequantize_double",
    bindings: &[
        Binding::read_u8("packed"),
        Binding::read_u8("codes"),
        Binding::read("nested_absmax"),
        Binding::read("map"),
        Binding::output("out"),
    ],
    arguments: DoubleArgs::FIELDS,
    cuda: |args| Grid::each(DoubleArgs::of(args).count.div_ceil(8)),
    wgsl: |args| DoubleArgs::of(args).count.div_ceil(8).div_ceil(256),
    cpu: cpu::dequantize_double,
};

pub static KERNEL: Kernel = Kernel {
    name: "nf4",
    entries: &[&DEQUANTIZE, &DEQUANTIZE_DOUBLE],
    cuda: include_str!("nf4.cu"),
    wgsl: include_str!("nf4.wgsl"),
};

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn golden_vector() {
        let x: Vec<f32> = (0..64).map(|i| ((i as f64 - 31.5) * 0.01) as f32).collect();
        let (packed, absmax) = quantize(&x);
        assert_eq!(absmax, [0.315]);
        let hex: String = packed.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff");
    }

    #[test]
    fn zeros_and_short_blocks_survive() {
        for count in [0, 1, 63, 64, 65, 130] {
            let (packed, absmax) = quantize(&vec![0.0; count]);
            assert_eq!(dequantize(&packed, &absmax, count), vec![0.0; count]);
        }
    }

    fn reference_file() -> Option<Vec<u8>> {
        let shared = std::env::var_os("MOTLEY_SHARED").map(PathBuf::from);
        let shared = shared.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"));
        let bytes = std::fs::read(shared.join("reference/nf4.safetensors")).ok();
        if bytes.is_none() {
            // Past the test runner, which keeps the words of a passing test to itself.
            let skipped = "skipped: shared/reference/nf4.safetensors is not here\n";
            let _unsaid = std::io::Write::write_all(&mut std::io::stderr(), skipped.as_bytes());
        }
        bytes
    }

    fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
        let view = file.tensor(name).unwrap();
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn bits_are_those_of_bitsandbytes() {
        let Some(bytes) = reference_file() else { return };
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for name in ["matrix", "ragged"] {
            let weight = floats(&file, &format!("{name}.weight"));
            let (packed, absmax) = quantize(&weight);
            assert_eq!(packed, file.tensor(&format!("{name}.packed")).unwrap().data(), "{name}");
            assert_eq!(bits(&absmax), bits(&floats(&file, &format!("{name}.absmax"))), "{name}");
            let wanted = floats(&file, &format!("{name}.dequantized"));
            assert_eq!(bits(&dequantize(&packed, &absmax, weight.len())), bits(&wanted), "{name}");
        }
        let key = |rest: &str| {
            let names = file.names();
            names.iter().find(|n| n.ends_with(rest)).map(|n| n.to_string()).unwrap()
        };
        let weight = floats(&file, "matrix.weight");
        let (packed, absmax) = quantize(&weight);
        assert_eq!(bits(dynamic_map()), bits(&floats(&file, &key("double.nested_code"))));
        let offset = floats(&file, &key("double.offset"))[0];
        let double = DoubleQuantized::with_offset(&absmax, offset);
        assert_eq!(double.codes, file.tensor(&key("double.absmax_codes")).unwrap().data());
        assert_eq!(bits(&double.nested_absmax), bits(&floats(&file, &key("double.nested_absmax"))));
        let got = dequantize(&packed, &double.absmax(), weight.len());
        assert_eq!(bits(&got), bits(&floats(&file, &key("double.dequantized"))));
        let own = DoubleQuantized::new(&absmax);
        assert!(own.offset.to_bits().abs_diff(offset.to_bits()) <= 1, "{} {offset}", own.offset);
    }

    #[test]
    fn fast_path_equals_the_specification() {
        use crate::check::random;
        for count in [1, 2, 64, 65, 1000] {
            let (packed, absmax) = quantize(&random(count, 1));
            let mut bytes = packed.clone();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            let workers = crate::Workers::new(2).unwrap();
            let mut out = vec![f32::NAN; count];
            let slices = vec![
                crate::Slice::Read(&bytes),
                crate::Slice::Read(bytemuck::cast_slice(&absmax)),
                crate::Slice::Write(bytemuck::cast_slice_mut(&mut out)),
            ];
            let args = Args { count: count as u32 };
            (DEQUANTIZE.cpu)(&mut crate::Call::new(bytemuck::bytes_of(&args), slices, &workers));
            assert_eq!(bits(&out), bits(&dequantize(&packed, &absmax, count)));
            let double = DoubleQuantized::new(&absmax);
            let slices = vec![
                crate::Slice::Read(&bytes),
                crate::Slice::Read(&double.codes),
                crate::Slice::Read(bytemuck::cast_slice(&double.nested_absmax)),
                crate::Slice::Read(bytemuck::cast_slice(dynamic_map())),
                crate::Slice::Write(bytemuck::cast_slice_mut(&mut out)),
            ];
            let args = DoubleArgs { count: count as u32, offset: double.offset };
            (DEQUANTIZE_DOUBLE.cpu)(&mut crate::Call::new(bytemuck::bytes_of(&args), slices, &workers));
            assert_eq!(bits(&out), bits(&dequantize(&packed, &double.absmax(), count)));
        }
    }
}
