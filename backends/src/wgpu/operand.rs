//! From views to bindings. WebGPU asks more than Motley's calls do: offsets of bindings are multiples of up to 256, and
//! a buffer that is written in a dispatch is not bound for reading there, not even elsewhere. What does not fit is
//! copied to memory of its own, and back if it was written.
//!
//! A source may read a buffer by vectors of four: offsets and sizes of bindings are multiples of [`VECTOR`], for which
//! every buffer has room behind its end.

use std::sync::Arc;

use super::gpu::Gpu;
use super::recorder::{Bound, Copy, Recorder};
use super::storage::{Shelf, Storage};
use crate::buffer::{Buffer, View};
use crate::memory::Category;
use crate::{Error, Result};

/// Bytes of a vector of four words.
pub(super) const VECTOR: u64 = 16;

pub(super) struct Binder {
    gpu: Arc<Gpu>,
    recorder: Arc<Recorder>,
    shelf: Arc<Shelf>,
    /// Stands for views of no bytes.
    empty: [Buffer; 2],
}

/// One argument of a call.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub view: View<'a>,
    pub writes: bool,
    /// The source adds [`Bindings::shifts`], so that any offset will do.
    pub shifts: bool,
}

/// What a call binds.
pub(super) struct Bindings<'a> {
    pub bound: Vec<Bound>,
    /// Elements from the start of a binding to the start of its view.
    pub shifts: Vec<u32>,
    /// Copies to be brought back after the dispatch, with where they belong.
    copies: Vec<(Buffer, View<'a>)>,
    /// Copies that were only read: not given to anybody else before the dispatch is recorded.
    _held: Vec<Buffer>,
}

impl Binder {
    pub fn new(gpu: Arc<Gpu>, recorder: Arc<Recorder>, shelf: Arc<Shelf>) -> Result<Self> {
        let empty = || shelf.own(VECTOR as usize);
        let empty = [empty()?, empty()?];
        Ok(Binder { gpu, recorder, shelf, empty })
    }

    /// # Errors
    /// Foreign buffers, views outside of them, written parts that overlap others, too large a binding.
    pub fn bind<'a>(&self, what: &'static str, operands: &[Operand<'a>]) -> Result<Bindings<'a>> {
        check_overlaps(what, operands)?;
        let mut bindings = Bindings { bound: vec![], shifts: vec![], copies: vec![], _held: vec![] };
        for operand in operands {
            let shift = operand.view.offset as u64 % self.alignment();
            let bytes = (operand.view.bytes as u64 + shift).next_multiple_of(VECTOR);
            if bytes > self.gpu.limits.max_storage_buffer_binding_size {
                let (device, limit) =
                    (self.gpu.name.clone(), self.gpu.limits.max_storage_buffer_binding_size);
                return Err(Error::BindingTooLarge { device, what, bytes, limit });
            }
            if operand.view.bytes == 0 {
                let empty = &self.empty[usize::from(operand.writes)];
                bindings.bound.push(whole(storage(empty, what)?, VECTOR));
                bindings.shifts.push(0);
            } else if self.needs_copy(operand, operands) {
                self.bind_copy(what, operand, &mut bindings)?;
            } else {
                self.bind_in_place(what, operand, &mut bindings)?;
            }
        }
        Ok(bindings)
    }

    /// Brings back what was written to copies.
    pub fn finish(&self, what: &'static str, bindings: &Bindings<'_>) -> Result<()> {
        for (copy, view) in &bindings.copies {
            let (copy, target) = (storage(copy, what)?, storage(view.buffer, what)?);
            self.recorder.copy(&Copy {
                source: &copy.buffer,
                source_offset: 0,
                target: &target.buffer,
                target_offset: view.offset as u64,
                bytes: (view.bytes as u64).next_multiple_of(4),
            })?;
        }
        Ok(())
    }

    fn misaligned(&self, operand: &Operand<'_>) -> bool {
        !operand.shifts && !(operand.view.offset as u64).is_multiple_of(self.alignment())
    }

    /// Of offsets of bindings.
    pub fn alignment(&self) -> u64 {
        u64::from(self.gpu.limits.min_storage_buffer_offset_alignment).max(VECTOR)
    }

    fn needs_copy(&self, operand: &Operand<'_>, all: &[Operand<'_>]) -> bool {
        let written_in_place = |other: &&Operand<'_>| {
            other.writes && same_memory(other.view, operand.view) && !self.misaligned(other)
        };
        self.misaligned(operand) || !operand.writes && all.iter().any(|other| written_in_place(&other))
    }

    fn bind_copy<'a>(
        &self,
        what: &'static str,
        operand: &Operand<'a>,
        bindings: &mut Bindings<'a>,
    ) -> Result<()> {
        let view = operand.view;
        let copy = self.shelf.buffer(view.bytes, Category::Workspace, true)?;
        let bytes = (view.bytes as u64).next_multiple_of(4);
        let (source, target) = (storage(view.buffer, what)?, storage(&copy, what)?);
        // Also where it is only written: an entry may leave some of it alone.
        self.recorder.copy(&Copy {
            source: &source.buffer,
            source_offset: view.offset as u64,
            target: &target.buffer,
            target_offset: 0,
            bytes,
        })?;
        bindings.bound.push(whole(target, bytes.next_multiple_of(VECTOR)));
        bindings.shifts.push(0);
        match operand.writes {
            true => bindings.copies.push((copy, view)),
            false => bindings._held.push(copy),
        }
        Ok(())
    }

    fn bind_in_place(
        &self,
        what: &'static str,
        operand: &Operand<'_>,
        bindings: &mut Bindings<'_>,
    ) -> Result<()> {
        let view = operand.view;
        let shift = view.offset as u64 % self.alignment();
        bindings.bound.push(Bound {
            buffer: storage(view.buffer, what)?.buffer.clone(),
            offset: view.offset as u64 - shift,
            bytes: (view.bytes as u64 + shift).next_multiple_of(VECTOR),
        });
        bindings.shifts.push((shift / 4) as u32);
        Ok(())
    }
}

/// # Errors
/// The buffer is another backend's.
pub(super) fn storage<'a>(buffer: &'a Buffer, what: &'static str) -> Result<&'a Storage> {
    buffer.memory::<Storage>().ok_or(Error::Foreign { what })
}

fn whole(storage: &Storage, bytes: u64) -> Bound {
    Bound { buffer: storage.buffer.clone(), offset: 0, bytes }
}

fn same_memory(a: View<'_>, b: View<'_>) -> bool {
    match (a.buffer.memory::<Storage>(), b.buffer.memory::<Storage>()) {
        (Some(a), Some(b)) => std::ptr::eq(a, b),
        _ => false,
    }
}

fn check_overlaps(what: &'static str, operands: &[Operand<'_>]) -> Result<()> {
    for (i, operand) in operands.iter().enumerate() {
        let view = operand.view;
        storage(view.buffer, what)?;
        view.check(what)?;
        for other in &operands[..i] {
            let apart = other.view.offset + other.view.bytes <= view.offset
                || view.offset + view.bytes <= other.view.offset;
            if same_memory(other.view, view) && !apart && (operand.writes || other.writes) {
                return Err(Error::Overlap { what });
            }
        }
    }
    Ok(())
}
