//! What a kernel is, as data: entries with their bindings, its sources, and one way to call each on the CPU.

use bytemuck::Pod;

use crate::workers::Workers;

/// A kernel: a name, its entries, and its sources for devices.
///
/// A device's function of an entry bears the entry's name with `_` for the dot: `layer_norm_forward`.
pub struct Kernel {
    pub name: &'static str,
    pub entries: &'static [&'static Entry],
    /// CUDA C++ behind [`crate::CUDA_PRELUDE`]. A function takes the buffers in order, then `Args` by value.
    pub cuda: &'static str,
    /// WGSL behind [`crate::WGSL_PRELUDE`] or [`crate::WGSL_PRELUDE_SUBGROUPS`]. Buffers are bindings 0, 1, ... of
    /// group 0 in order; `Args` is the uniform behind the last of them. A `const` of type u32 that bears the name of an
    /// argument is set to that argument before the source is compiled, and `is_software` to 1 where the device computes
    /// on the processor.
    pub wgsl: &'static str,
}

/// One thing that can be launched. The order of `bindings` is the order of buffers in every language.
pub struct Entry {
    /// Kernel and entry: `layer_norm.forward`.
    pub name: &'static str,
    pub bindings: &'static [Binding],
    /// Fields of the argument struct, in order.
    pub arguments: &'static [Field],
    /// How many threads CUDA runs, from the argument struct.
    pub cuda: fn(&[u8]) -> Grid,
    /// How many workgroups WGSL runs, from the argument struct; their size stands in the source.
    pub wgsl: fn(&[u8]) -> u32,
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
    /// What the device keeps activations in: f32, or 16 bits where it was opened so.
    Activation,
}

/// Blocks of threads of one launch on CUDA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pub blocks: u32,
    /// A block's threads, a multiple of 32.
    pub threads: u32,
    /// Shared memory beside what the source declares.
    pub shared_bytes: u32,
    /// The function for tensor cores that takes the place of the entry's own where activations have 16 bits.
    pub tensor: Option<TensorFunction>,
}

/// A function beside that of the entry, with the same buffers and arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorFunction {
    pub name: &'static str,
    pub blocks: u32,
    pub threads: u32,
    pub shared_bytes: u32,
}

impl Grid {
    pub const fn new(blocks: u32, threads: u32) -> Self {
        Grid { blocks, threads, shared_bytes: 0, tensor: None }
    }

    /// Blocks of 256 threads, a thread for each of `count` things.
    pub const fn each(count: u32) -> Self {
        Grid::new(count.div_ceil(256), 256)
    }

    /// Blocks of eight warps, a warp for each of `count` things.
    pub const fn warps(count: u32) -> Self {
        Grid::new(count.div_ceil(8), 256)
    }
}

/// Arguments of an entry: `repr(C)`, u32 and f32 fields only. Declared by [`arguments!`](crate::arguments).
pub trait Arguments: Pod {
    const FIELDS: &'static [Field];

    /// The struct in `bytes`, as [`Entry::cuda`] and [`Entry::wgsl`] get it.
    fn of(bytes: &[u8]) -> Self {
        bytemuck::pod_read_unaligned(&bytes[..size_of::<Self>()])
    }
}

/// A field of an argument struct, 4 bytes at 4 times its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub dtype: Dtype,
}

/// The dtype of a field's Rust type.
pub trait Scalar {
    const DTYPE: Dtype;
}

impl Scalar for u32 {
    const DTYPE: Dtype = Dtype::U32;
}

impl Scalar for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

/// Declares an argument struct with the description of its fields.
#[macro_export]
macro_rules! arguments {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* pub $field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type),* }

        impl $crate::Arguments for $name {
            const FIELDS: &'static [$crate::Field] = &[$($crate::Field {
                name: stringify!($field),
                dtype: <$type as $crate::kernel::Scalar>::DTYPE,
            }),*];
        }
    };
}

/// Immediates of every target hold this much.
pub const ARGUMENT_BYTES_MAX: usize = 128;

impl Entry {
    /// Size of the argument struct; at most [`ARGUMENT_BYTES_MAX`].
    pub const fn argument_bytes(&self) -> usize {
        self.arguments.len() * 4
    }
}

impl Binding {
    /// An activation that is read.
    pub const fn input(name: &'static str) -> Self {
        Binding { name, access: Access::Read, dtype: Dtype::Activation }
    }

    /// An activation that is written.
    pub const fn output(name: &'static str) -> Self {
        Binding { name, access: Access::Write, dtype: Dtype::Activation }
    }

    /// An activation that is changed.
    pub const fn changed(name: &'static str) -> Self {
        Binding { name, access: Access::ReadWrite, dtype: Dtype::Activation }
    }

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
