//! Files of vectors: NumPy's .npy, and JSON lines. Written row by row, in constant memory, whole or absent.
//!
//! ```text
//! .npy   "\x93NUMPY" 1 0 | header length u16 | "{'descr': '<f4', 'fortran_order': False, 'shape': (rows, width), }"
//!        padded with spaces to 128 bytes, closed by \n | float32 little-endian, row by row
//! .jsonl {"index": 0, "embedding": [0.1, ...]}
//! ```
//!
//! The number of rows is known at the end, so the header is written twice; 128 bytes hold any number of rows.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::disk::{DiskError, at};

/// An open file of vectors; it takes its name when [`VectorFile::finish`] succeeds.
#[derive(Debug)]
pub(crate) struct VectorFile {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    format: Format,
    width: usize,
    rows: u64,
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Npy,
    JsonLines,
}

#[derive(Serialize)]
struct Row<'a> {
    index: u64,
    embedding: &'a [f32],
}

const HEADER_BYTES: usize = 128;

impl Format {
    /// By the file's ending.
    pub(crate) fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()? {
            "npy" => Some(Format::Npy),
            "jsonl" => Some(Format::JsonLines),
            _ => None,
        }
    }
}

/// Where a file is written before it takes its name.
pub(crate) fn partial_of(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("vectors");
    path.with_file_name(format!(".partial-{name}"))
}

impl VectorFile {
    /// `width` is the number of values of a vector.
    pub(crate) fn create(path: &Path, format: Format, width: usize) -> Result<VectorFile, DiskError> {
        let partial = partial_of(path);
        let file = BufWriter::with_capacity(1 << 20, File::create(&partial).map_err(at(path))?);
        let path = path.to_path_buf();
        let mut vectors = VectorFile { path, partial, file, format, width, rows: 0, finished: false };
        if format == Format::Npy {
            vectors.file.write_all(&header(0, width)).map_err(at(&vectors.path))?;
        }
        Ok(vectors)
    }

    /// Appends whole rows.
    pub(crate) fn write(&mut self, values: &[f32]) -> Result<(), DiskError> {
        for row in values.chunks_exact(self.width) {
            match self.format {
                Format::Npy => row.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes())),
                Format::JsonLines => {
                    let row = Row { index: self.rows, embedding: row };
                    let line = serde_json::to_string(&row).expect("numbers are JSON");
                    self.file.write_all(line.as_bytes()).and_then(|()| self.file.write_all(b"\n"))
                }
            }
            .map_err(at(&self.path))?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Completes the file and gives it its name.
    pub(crate) fn finish(mut self) -> Result<u64, DiskError> {
        let result = self.complete();
        result.map_err(at(&self.path))?;
        self.finished = true;
        Ok(self.rows)
    }

    fn complete(&mut self) -> io::Result<()> {
        if self.format == Format::Npy {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&header(self.rows, self.width))?;
        }
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.partial, &self.path)
    }
}

impl Drop for VectorFile {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn header(rows: u64, width: usize) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&((HEADER_BYTES - 10) as u16).to_le_bytes());
    bytes.extend_from_slice(
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}").as_bytes(),
    );
    assert!(bytes.len() < HEADER_BYTES, "two 64-bit numbers fit");
    bytes.resize(HEADER_BYTES - 1, b' ');
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_files_are_numpys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        let mut file = VectorFile::create(&path, Format::of(&path).unwrap(), 2).unwrap();
        file.write(&[1.0, 2.0]).unwrap();
        file.write(&[3.0, 4.0, 5.0, 6.5]).unwrap();
        assert!(!path.exists(), "no name before the end");
        assert_eq!(file.finish().unwrap(), 3);
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 128 + 24);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
        let text = std::str::from_utf8(&bytes[10..128]).unwrap();
        assert!(
            text.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }")
                && text.ends_with('\n')
        );
        assert_eq!(&bytes[148..], 6.5f32.to_le_bytes());
        assert_eq!(header(u64::MAX, usize::MAX).len(), HEADER_BYTES);
    }

    #[test]
    fn json_lines_carry_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.jsonl");
        let mut file = VectorFile::create(&path, Format::of(&path).unwrap(), 2).unwrap();
        file.write(&[0.1, 2.0, 3.0, -4.0]).unwrap();
        file.finish().unwrap();
        let expected = "{\"index\":0,\"embedding\":[0.1,2.0]}\n{\"index\":1,\"embedding\":[3.0,-4.0]}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn an_abandoned_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.npy");
        drop(VectorFile::create(&path, Format::Npy, 2).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(Format::of(Path::new("v.txt")), None);
        assert!(VectorFile::create(Path::new("/nowhere/v.npy"), Format::Npy, 2).is_err());
    }
}
