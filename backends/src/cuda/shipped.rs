//! PTX that travels in the program, for nodes that have the driver alone.
//!
//! ```text
//! //// <source> <architecture> <activation bits> <sha256 of the source>
//! <PTX>
//! ```
//!
//! The repository's command `cuda_compile` writes the archive.

use crate::open::Precision;

const ARCHIVE: &str = include_str!("kernels.ptx");

/// PTX of `source` for a device, ending with a zero byte: that of the newest architecture that the device has.
pub(super) fn ptx(source: &str, (major, minor): (i32, i32), precision: Precision) -> Option<Vec<u8>> {
    let bits = precision.bytes() * 8;
    let mut best: Option<(i32, &str)> = None;
    for module in ARCHIVE.split("//// ").skip(1) {
        let (head, text) = module.split_once('\n')?;
        let mut words = head.split(' ');
        let (name, architecture, found) = (words.next()?, words.next()?, words.next()?);
        let architecture: i32 = architecture.strip_prefix("compute_")?.parse().ok()?;
        let fits = name == source && found == bits.to_string() && architecture <= major * 10 + minor;
        if fits && best.is_none_or(|(known, _)| known < architecture) {
            best = Some((architecture, text));
        }
    }
    best.map(|(_, text)| text.bytes().chain([0]).collect())
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn what_is_shipped_was_made_of_the_sources_as_they_are() {
        for (name, source) in crate::cuda::cuda_sources() {
            let hash: String = Sha256::digest(&source).iter().map(|byte| format!("{byte:02x}")).collect();
            for (capability, architecture, precision) in
                [((7, 5), "compute_75", Precision::F32), ((9, 0), "compute_80", Precision::Bf16)]
            {
                let head = format!("//// {name} {architecture} {} {hash}\n", precision.bytes() * 8);
                assert!(
                    ARCHIVE.contains(&head),
                    "the PTX of {name} is of another source\nhint: cargo run --release -p motley-backends \
                     --example cuda_compile -- --ptx backends/src/cuda/kernels.ptx"
                );
                let ptx = ptx(name, capability, precision).unwrap();
                assert!(ptx.starts_with(b".version") && ptx.ends_with(b"\0"), "{name}");
            }
            assert!(ptx(name, (7, 5), Precision::Bf16).is_none(), "Turing has no bf16");
        }
    }
}
