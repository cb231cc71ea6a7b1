//! Commands in the order in which they were asked for, gathered into few submissions.
//!
//! ```text
//! dispatch, copy, clear → one encoder, one pass as long as dispatches follow each other
//! flush                 → arguments of all dispatches to one uniform buffer, then one submission
//! ```
//!
//! A flush comes when the argument slots are used up, before an upload (which wgpu puts before all that is not
//! submitted yet), and when somebody waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use motley_kernels::kernel::ARGUMENT_BYTES_MAX;
use wgpu::{BufferUsages, MapMode};

use super::gpu::Gpu;
use super::pipeline::Pipeline;
use crate::Result;

/// Dispatches of one submission: enough to hide its cost, few enough to keep the device busy meanwhile.
const SLOTS: u64 = 256;

/// Bytes that one transfer moves at a time: wgpu keeps them in host memory until the device has them.
const TRANSFER_BYTES: usize = 64 << 20;

pub(super) struct Recorder {
    gpu: Arc<Gpu>,
    arguments: wgpu::Buffer,
    /// Bytes from one slot of `arguments` to the next.
    slot: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    // Before the encoder, which may not end before its pass.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: Option<wgpu::CommandEncoder>,
    arguments: Vec<u8>,
    /// For downloads, as large as the largest so far.
    staging: Option<wgpu::Buffer>,
}

/// One buffer of a dispatch.
#[derive(Clone)]
pub(super) struct Bound {
    pub buffer: wgpu::Buffer,
    pub offset: u64,
    pub bytes: u64,
}

/// Bytes from one buffer to another.
pub(super) struct Copy<'a> {
    pub source: &'a wgpu::Buffer,
    pub source_offset: u64,
    pub target: &'a wgpu::Buffer,
    pub target_offset: u64,
    /// A multiple of 4, like the offsets.
    pub bytes: u64,
}

impl Recorder {
    pub fn new(gpu: Arc<Gpu>) -> Result<Self> {
        let slot = u64::from(gpu.limits.min_uniform_buffer_offset_alignment).max(ARGUMENT_BYTES_MAX as u64);
        let usage = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let arguments = gpu.create_buffer(SLOTS * slot, usage)?;
        let arguments = arguments.ok_or_else(|| gpu.failed("open", "out of memory".to_owned()))?;
        Ok(Recorder { gpu, arguments, slot, state: Mutex::default() })
    }

    pub fn dispatch(
        &self,
        pipeline: &Pipeline,
        bound: &[Bound],
        arguments: &[u8],
        workgroups: u32,
    ) -> Result<()> {
        if workgroups == 0 {
            return Ok(());
        }
        self.gpu.attempt("launch", || {
            let mut state = self.state();
            let offset = state.arguments.len() as u64;
            state.arguments.extend_from_slice(arguments);
            state.arguments.resize((offset + self.slot) as usize, 0);
            let group = self.group(pipeline, bound, arguments.len());
            let pass = state.pass(&self.gpu);
            pass.set_pipeline(&pipeline.pipeline);
            pass.set_bind_group(0, &group, &[offset as u32]);
            let most = self.gpu.limits.max_compute_workgroups_per_dimension;
            // The shortest rows that need no more than `most` of them, so that few workgroups have nothing to do.
            let rows = workgroups.div_ceil(most);
            pass.dispatch_workgroups(workgroups.div_ceil(rows), rows, 1);
            if state.arguments.len() as u64 == SLOTS * self.slot {
                self.submit(&mut state);
            }
        })
    }

    fn group(&self, pipeline: &Pipeline, bound: &[Bound], argument_bytes: usize) -> wgpu::BindGroup {
        let size = |bytes| wgpu::BufferSize::new(bytes);
        let mut entries: Vec<_> = bound
            .iter()
            .map(|bound| wgpu::BufferBinding {
                buffer: &bound.buffer,
                offset: bound.offset,
                size: size(bound.bytes),
            })
            .collect();
        let bytes = (argument_bytes as u64).next_multiple_of(16);
        entries.push(wgpu::BufferBinding { buffer: &self.arguments, offset: 0, size: size(bytes) });
        let entries: Vec<_> = entries
            .into_iter()
            .enumerate()
            .map(|(i, buffer)| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(buffer),
            })
            .collect();
        let layout = &pipeline.layout;
        self.gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }

    pub fn copy(&self, copy: &Copy<'_>) -> Result<()> {
        self.gpu.attempt("copy", || self.state().copy(&self.gpu, copy))
    }

    /// Fills a buffer with zeros.
    pub fn clear(&self, buffer: &wgpu::Buffer) -> Result<()> {
        self.gpu.attempt("allocate", || self.state().encoder(&self.gpu).clear_buffer(buffer, 0, None))
    }

    /// Submits what was recorded.
    pub fn flush(&self) -> Result<()> {
        self.gpu.attempt("submit", || self.submit(&mut self.state()))
    }

    fn submit(&self, state: &mut State) {
        state.pass = None;
        let Some(encoder) = state.encoder.take() else { return };
        self.gpu.queue.write_buffer(&self.arguments, 0, &state.arguments);
        state.arguments.clear();
        self.gpu.queue.submit([encoder.finish()]);
        // Frees what finished submissions held; a failure shows at the next wait.
        let _ = self.gpu.device.poll(wgpu::PollType::Poll);
    }

    /// Copies `source`, whole words, behind all that was recorded.
    pub fn upload(&self, source: &[u8], target: &wgpu::Buffer, offset: u64) -> Result<()> {
        self.flush()?;
        let mut offset = offset;
        for part in source.chunks(TRANSFER_BYTES) {
            self.gpu.attempt("upload", || {
                self.gpu.queue.write_buffer(target, offset, part);
                if source.len() > TRANSFER_BYTES {
                    self.gpu.queue.submit([]);
                }
            })?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Copies from `source` when all that was recorded is done.
    pub fn download(&self, source: &wgpu::Buffer, offset: u64, target: &mut [u8]) -> Result<()> {
        let mut offset = offset;
        for part in target.chunks_mut(TRANSFER_BYTES) {
            let staging = self.staged(source, offset, (part.len() as u64).next_multiple_of(4))?;
            self.gpu.wait("download")?;
            let copied = self.gpu.attempt("download", || {
                let view = staging.get_mapped_range(0..(part.len() as u64).next_multiple_of(4))?;
                part.copy_from_slice(&view[..part.len()]);
                drop(view);
                staging.unmap();
                Ok::<_, wgpu::MapRangeError>(())
            })?;
            copied.map_err(|error| self.gpu.failed("download", error.to_string()))?;
            offset += part.len() as u64;
            self.state().staging = Some(staging);
        }
        Ok(())
    }

    /// A mapping, under way, of a buffer that begins with `bytes` bytes of `source`.
    fn staged(&self, source: &wgpu::Buffer, offset: u64, bytes: u64) -> Result<wgpu::Buffer> {
        let kept = self.state().staging.take().filter(|buffer| buffer.size() >= bytes);
        let staging = match kept {
            Some(buffer) => Some(buffer),
            None => self.gpu.create_buffer(bytes, BufferUsages::MAP_READ | BufferUsages::COPY_DST)?,
        };
        let staging = staging.ok_or_else(|| self.gpu.failed("download", "out of memory".to_owned()))?;
        self.gpu.attempt("download", || {
            let mut state = self.state();
            let target = &staging;
            let copy = Copy { source, source_offset: offset, target, target_offset: 0, bytes };
            state.copy(&self.gpu, &copy);
            self.submit(&mut state);
            // Whether it worked shows when the mapping is read.
            staging.map_async(MapMode::Read, 0..bytes, |_| ());
        })?;
        Ok(staging)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pass(&mut self, gpu: &Gpu) -> &mut wgpu::ComputePass<'static> {
        if self.pass.is_none() {
            let pass = self.encoder(gpu).begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.pass = Some(pass.forget_lifetime());
        }
        self.pass.as_mut().expect("set above")
    }

    /// For commands outside of a pass.
    fn encoder(&mut self, gpu: &Gpu) -> &mut wgpu::CommandEncoder {
        self.pass = None;
        let descriptor = wgpu::CommandEncoderDescriptor::default();
        self.encoder.get_or_insert_with(|| gpu.device.create_command_encoder(&descriptor))
    }

    fn copy(&mut self, gpu: &Gpu, copy: &Copy<'_>) {
        let (source, target) = ((copy.source, copy.source_offset), (copy.target, copy.target_offset));
        self.encoder(gpu).copy_buffer_to_buffer(source.0, source.1, target.0, target.1, copy.bytes);
    }
}
