//! Device memory, opaque: a byte length and whatever the backend keeps behind it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// Memory of one device. Clones share it; the last one gives it back once the queue has passed its uses.
#[derive(Clone)]
pub struct Buffer {
    bytes: usize,
    inner: Arc<dyn Any + Send + Sync>,
}

impl Buffer {
    pub(crate) fn new(bytes: usize, inner: Arc<dyn Any + Send + Sync>) -> Self {
        Buffer { bytes, inner }
    }

    /// Length in bytes, as asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn inner<T: 'static>(&self) -> Option<&T> {
        self.inner.downcast_ref()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}
