//! TensorBoard event files: scalars over steps.
//!
//! ```text
//! file    = record*
//! record  = length u64 | masked crc32c(length) u32 | event | masked crc32c(event) u32      little-endian
//! event   = protobuf tensorflow.Event { 1: wall_time double, 2: step int64, 3: file_version string,
//!                                       5: summary { 1: value { 1: tag string, 2: simple_value float } } }
//! ```
//!
//! Written by hand: the format is forty lines, and the crates that write it have been without releases for years.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// An open event file.
#[derive(Debug)]
pub(crate) struct EventFile {
    file: File,
}

/// One point of one curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scalar<'a> {
    /// `train/loss`.
    pub(crate) tag: &'a str,
    pub(crate) step: u64,
    /// Seconds since 1970.
    pub(crate) wall_time: f64,
    pub(crate) value: f64,
}

impl EventFile {
    /// Creates `folder` and in it `events.out.tfevents.<seconds>.motley`.
    pub(crate) fn create(folder: &Path, wall_time: f64) -> io::Result<EventFile> {
        std::fs::create_dir_all(folder)?;
        let file = File::create(folder.join(format!("events.out.tfevents.{:010}.motley", wall_time as u64)))?;
        let mut events = EventFile { file };
        let mut version = Vec::new();
        put_double(&mut version, 1, wall_time);
        put_bytes(&mut version, 3, b"brain.Event:2");
        events.record(&version)?;
        Ok(events)
    }

    pub(crate) fn scalar(&mut self, scalar: Scalar<'_>) -> io::Result<()> {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, scalar.tag.as_bytes());
        put_key(&mut value, 2, WIRE_32_BIT);
        value.extend_from_slice(&(scalar.value as f32).to_le_bytes());
        let mut summary = Vec::new();
        put_bytes(&mut summary, 1, &value);
        let mut event = Vec::new();
        put_double(&mut event, 1, scalar.wall_time);
        put_key(&mut event, 2, WIRE_VARINT);
        put_varint(&mut event, scalar.step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    /// One write a record, so that a reader never sees half of one for long.
    fn record(&mut self, event: &[u8]) -> io::Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(event);
        record.extend_from_slice(&masked_crc(event).to_le_bytes());
        self.file.write_all(&record)
    }
}

const WIRE_VARINT: u64 = 0;
const WIRE_64_BIT: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_32_BIT: u64 = 5;

fn put_key(into: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(into, field << 3 | wire);
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn put_double(into: &mut Vec<u8>, field: u64, value: f64) {
    put_key(into, field, WIRE_64_BIT);
    into.extend_from_slice(&value.to_le_bytes());
}

fn put_bytes(into: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(into, field, WIRE_BYTES);
    put_varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

/// TFRecord's mask: a checksum stored beside what it covers must not look like part of it.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes a step.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            let carry = crc & 1;
            crc >>= 1;
            if carry == 1 {
                crc ^= 0x82f6_3b78;
            }
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnoli() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn records_are_framed_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), 1_700_000_000.5).unwrap();
        events.scalar(Scalar { tag: "train/loss", step: 300, wall_time: 2.0, value: 0.5 }).unwrap();
        let path = folder.path().join("events.out.tfevents.1700000000.motley");
        let bytes = std::fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked_crc(&rest[..8]));
            assert_eq!(crc(12 + length), masked_crc(&rest[12..12 + length]));
            events.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 2);
        assert!(events[0].ends_with(b"brain.Event:2"));
        let mut expected = vec![0x09];
        expected.extend_from_slice(&2.0f64.to_le_bytes());
        // Step 300 as a varint, then summary { value { tag, simple_value 0.5 } }.
        expected.extend_from_slice(&[0x10, 0xac, 0x02, 0x2a, 0x13, 0x0a, 0x11, 0x0a, 10]);
        expected.extend_from_slice(b"train/loss");
        expected.extend_from_slice(&[0x15, 0, 0, 0, 0x3f]);
        assert_eq!(events[1], expected);
    }
}
