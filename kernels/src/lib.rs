//! What is computed: every kernel as data, with its specification and its fast path on the CPU.
//!
//! Each folder holds one kernel: `mod.rs` (formula, arguments, entries), `reference.rs` (the specification: plain
//! loops, never optimised), `cpu.rs` (the fast path), `<name>.cu` and `<name>.wgsl`. Nothing here allocates device memory, starts a thread or knows a model.

pub mod adamw;
pub mod attention;
#[cfg(test)]
mod check;
pub mod cosent;
pub mod cosine_pairs;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod embed;
pub mod gelu;
pub mod head_norm;
pub mod kernel;
pub mod layer_norm;
pub mod lora;
pub mod nf4;
pub mod normalize;
pub mod pool;
pub mod real;
pub mod rms_norm;
pub mod rope;
pub mod simd;
pub mod squared_error;
pub mod sum_squares;
pub mod swiglu;
pub mod workers;

pub use kernel::{
    Access, Arguments, Binding, Call, Dtype, Entry, Field, Grid, Kernel, Slice, TensorFunction,
};
pub use real::Real;
pub use workers::Workers;

/// What stands before the CUDA source of every kernel.
pub const CUDA_PRELUDE: &str = include_str!("prelude.cuh");

/// What stands before the WGSL source of every kernel.
pub const WGSL_PRELUDE: &str = concat!(include_str!("prelude.wgsl"), include_str!("workgroup_plain.wgsl"));

/// What stands there instead where the device has subgroups.
pub const WGSL_PRELUDE_SUBGROUPS: &str =
    concat!(include_str!("prelude.wgsl"), include_str!("workgroup_subgroups.wgsl"));

/// Every kernel, sorted by name.
pub const ALL: &[&Kernel] = &[
    &adamw::KERNEL,
    &attention::KERNEL,
    &cosent::KERNEL,
    &cosine_pairs::KERNEL,
    &cross_entropy::KERNEL,
    &dropout::KERNEL,
    &elementwise::KERNEL,
    &embed::KERNEL,
    &gelu::KERNEL,
    &head_norm::KERNEL,
    &layer_norm::KERNEL,
    &lora::KERNEL,
    &nf4::KERNEL,
    &normalize::KERNEL,
    &pool::KERNEL,
    &rms_norm::KERNEL,
    &rope::KERNEL,
    &squared_error::KERNEL,
    &sum_squares::KERNEL,
    &swiglu::KERNEL,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_fits_the_immediates_of_every_target_and_bears_its_kernels_name() {
        assert!(ALL.is_sorted_by_key(|kernel| kernel.name));
        for kernel in ALL {
            assert!(!kernel.entries.is_empty());
            for entry in kernel.entries {
                let bytes = entry.argument_bytes();
                let fits = bytes > 0 && bytes <= kernel::ARGUMENT_BYTES_MAX && bytes.is_multiple_of(4);
                assert!(fits, "{} has {bytes} bytes of arguments", entry.name);
                assert_eq!(entry.name.split_once('.').map(|(name, _)| name), Some(kernel.name));
            }
        }
    }
}
