//! What a kernel is, as data: entries with their bindings, and one way to call each on the CPU.

use bytemuck::Pod;

use crate::workers::Workers;

/// A kernel: a name and its entries.
pub struct Kernel {
    pub name: &'static str,
    pub entries: &'static [&'static Entry],
}

/// One thing that can be launched. The order of `bindings` is the order of buffers in every language.
pub struct Entry {
    /// Kernel and entry: `layer_norm.forward`.
    pub name: &'static str,
    pub bindings: &'static [Binding],
    /// Size of the argument struct; at most [`ARGUMENT_BYTES_MAX`], a multiple of 4.
    pub argument_bytes: usize,
    /// The fast path on the CPU.
    pub cpu: fn(&mut Call<'_>),
}

/// A buffer of an entry.
pub struct Binding {
    pub name: &'static str,
    pub access: Access,
    pub dtype: Dtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Written whole, or in the places that the entry says; never read.
    Write,
    ReadWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    U32,
    U8,
}

/// Arguments of an entry: `repr(C)`, u32 and f32 fields only.
pub trait Arguments: Pod {}

/// Immediates of every target hold this much.
pub const ARGUMENT_BYTES_MAX: usize = 128;

impl Binding {
    pub const fn read(name: &'static str) -> Self {
        Binding { name, access: Access::Read, dtype: Dtype::F32 }
    }

    pub const fn read_u32(name: &'static str) -> Self {
        Binding { name, access: Access::Read, dtype: Dtype::U32 }
    }

    pub const fn read_u8(name: &'static str) -> Self {
        Binding { name, access: Access::Read, dtype: Dtype::U8 }
    }

    pub const fn write(name: &'static str) -> Self {
        Binding { name, access: Access::Write, dtype: Dtype::F32 }
    }

    pub const fn update(name: &'static str) -> Self {
        Binding { name, access: Access::ReadWrite, dtype: Dtype::F32 }
    }
}

/// Memory of one binding during a call on the CPU.
pub enum Slice<'a> {
    Read(&'a [u8]),
    Write(&'a mut [u8]),
}

/// One call on the CPU. Buffers are taken in the order of the entry's bindings.
pub struct Call<'a> {
    arguments: &'a [u8],
    slices: std::vec::IntoIter<Slice<'a>>,
    pub workers: &'a Workers,
}

impl<'a> Call<'a> {
    pub fn new(arguments: &'a [u8], slices: Vec<Slice<'a>>, workers: &'a Workers) -> Self {
        Call { arguments, slices: slices.into_iter(), workers }
    }

    /// The argument struct.
    ///
    /// # Panics
    /// If `A` is not of the size the entry names; the backend checks that before.
    pub fn arguments<A: Arguments>(&self) -> A {
        bytemuck::pod_read_unaligned(&self.arguments[..size_of::<A>()])
    }

    /// The next buffer, to be read.
    ///
    /// # Panics
    /// If there is none; the backend checks the count of buffers against the entry before.
    pub fn read<T: Pod>(&mut self) -> &'a [T] {
        match self.slices.next().expect("the backend checked the number of buffers") {
            Slice::Read(bytes) => bytemuck::cast_slice(bytes),
            Slice::Write(bytes) => bytemuck::cast_slice(bytes),
        }
    }

    /// The next buffer, to be written.
    ///
    /// # Panics
    /// If there is none, or it is bound for reading; the backend checks both before.
    pub fn write<T: Pod>(&mut self) -> &'a mut [T] {
        match self.slices.next().expect("the backend checked the number of buffers") {
            Slice::Write(bytes) => bytemuck::cast_slice_mut(bytes),
            Slice::Read(_) => panic!("the backend binds written buffers for writing"),
        }
    }
}
