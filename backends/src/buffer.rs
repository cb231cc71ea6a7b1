//! Memory of a device: opaque, reference-counted, a byte length. Shapes and dtypes live with the caller.

use std::any::Any;
use std::sync::Arc;

/// Memory of one device. Clones share it; it goes back when the last is dropped.
#[derive(Clone)]
pub struct Buffer {
    bytes: usize,
    memory: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    pub(crate) fn new(bytes: usize, memory: Arc<dyn Any + Send + Sync>) -> Self {
        Buffer { bytes, memory }
    }

    pub(crate) fn memory<M: 'static>(&self) -> Option<&M> {
        self.memory.downcast_ref()
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole of it.
    pub fn all(&self) -> View<'_> {
        self.at(0)
    }

    /// From byte `offset` to the end.
    pub fn at(&self, offset: usize) -> View<'_> {
        View { buffer: self, offset, bytes: self.bytes.saturating_sub(offset) }
    }

    /// `bytes` bytes from byte `offset` on; whether they exist is checked when they are used.
    pub fn part(&self, offset: usize, bytes: usize) -> View<'_> {
        View { buffer: self, offset, bytes }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

/// Part of a buffer. It may be longer than a call needs.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub buffer: &'a Buffer,
    /// In bytes; a multiple of 4.
    pub offset: usize,
    pub bytes: usize,
}

impl View<'_> {
    /// # Errors
    /// The view is not inside its buffer, or misaligned.
    pub(crate) fn check(&self, what: &'static str) -> crate::Result<()> {
        let (start, length) = (self.offset, self.buffer.bytes);
        let end = start.saturating_add(self.bytes);
        if end > length {
            return Err(crate::Error::OutOfBounds { what, start, end, length });
        }
        if !start.is_multiple_of(4) {
            return Err(crate::Error::Misaligned { what, offset: start });
        }
        Ok(())
    }

    /// The first `bytes` of it.
    ///
    /// # Errors
    /// It has fewer.
    pub(crate) fn first(&self, bytes: usize, what: &'static str) -> crate::Result<Self> {
        if bytes > self.bytes {
            let (start, end) = (self.offset, self.offset.saturating_add(bytes));
            return Err(crate::Error::OutOfBounds { what, start, end, length: self.offset + self.bytes });
        }
        let view = View { bytes, ..*self };
        view.check(what)?;
        Ok(view)
    }
}
