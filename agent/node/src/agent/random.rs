//! Entropy of the system, for nonces and jitter.

use std::fs::File;
use std::io::{self, Read};

/// Random bytes.
fn bytes<const COUNT: usize>() -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// 128 bits in hexadecimal.
pub(crate) fn nonce() -> io::Result<String> {
    Ok(bytes::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Between 0 and 1. Without entropy every agent waits the same time, which harms nobody but the scheduler's peak.
pub(crate) fn fraction() -> f64 {
    let bytes = bytes::<4>().unwrap_or([0x80; 4]);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
