//! Compiled entries, made at first use and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use motley_kernels::{ALL, Access, Entry, WGSL_PRELUDE, WGSL_PRELUDE_SUBGROUPS};

use super::gpu::Gpu;
use crate::{Error, Result};

pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

pub(super) struct Pipelines {
    gpu: Arc<Gpu>,
    made: Mutex<HashMap<Key, Arc<Pipeline>>>,
}

/// A function's name, and the values of the constants that stand for arguments.
type Key = (&'static str, Vec<u32>);

/// A function of a source that is not a kernel's.
pub(super) struct Function<'a> {
    pub name: &'static str,
    /// What the language must be told before everything else.
    pub enable: &'static str,
    /// Behind the prelude of the device.
    pub source: &'a str,
    /// In the order of their bindings.
    pub accesses: &'a [Access],
    pub constants: &'a [(&'static str, u32)],
}

impl Pipelines {
    pub fn new(gpu: Arc<Gpu>) -> Self {
        Pipelines { gpu, made: Mutex::default() }
    }

    /// The pipeline of a kernel's entry for these arguments.
    ///
    /// # Errors
    /// The entry is no kernel's, or the driver refuses the source.
    pub fn of_entry(&self, entry: &'static Entry, arguments: &[u8]) -> Result<Arc<Pipeline>> {
        let kernel = ALL.iter().find(|kernel| kernel.entries.iter().any(|e| std::ptr::eq(*e, entry)));
        let kernel = kernel.ok_or(Error::Foreign { what: entry.name })?;
        let mut constants = constants(entry, arguments, kernel.wgsl);
        constants.push(("is_software", u32::from(self.gpu.is_software)));
        let key = (entry.name, constants.iter().map(|(_, value)| *value).collect());
        self.get(key, || {
            let accesses: Vec<_> = entry.bindings.iter().map(|binding| binding.access).collect();
            let source = specialised(kernel.wgsl, &constants);
            self.make(&entry.name.replace('.', "_"), &accesses, &self.sourced("", &source))
        })
    }

    /// # Errors
    /// The driver refuses the source.
    pub fn of_function(&self, function: &Function<'_>) -> Result<Arc<Pipeline>> {
        let Function { name, enable, source, accesses, constants } = *function;
        let key = (name, constants.iter().map(|(_, value)| *value).collect());
        self.get(key, || self.make(name, accesses, &self.sourced(enable, &specialised(source, constants))))
    }

    fn get(&self, key: Key, make: impl FnOnce() -> Result<Pipeline>) -> Result<Arc<Pipeline>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(&key) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(make()?);
        made.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// With what stands before it.
    fn sourced(&self, enable: &str, source: &str) -> String {
        let prelude = if self.gpu.has_subgroups { WGSL_PRELUDE_SUBGROUPS } else { WGSL_PRELUDE };
        format!("{enable}{prelude}{source}")
    }

    fn make(&self, name: &str, accesses: &[Access], source: &str) -> Result<Pipeline> {
        let device = &self.gpu.device;
        let buffer = |(i, ty, dynamic): (usize, wgpu::BufferBindingType, bool)| wgpu::BindGroupLayoutEntry {
            binding: i as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: dynamic, min_binding_size: None },
            count: None,
        };
        let storage = |access| wgpu::BufferBindingType::Storage { read_only: access == Access::Read };
        let mut entries: Vec<_> =
            accesses.iter().enumerate().map(|(i, access)| buffer((i, storage(*access), false))).collect();
        entries.push(buffer((accesses.len(), wgpu::BufferBindingType::Uniform, true)));
        self.gpu.attempt("compile", || {
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            });
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                bind_group_layouts: &[Some(&layout)],
                ..Default::default()
            });
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(name),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            };
            let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..Default::default() };
            // SAFETY: bounds stay checked, and every loop of our sources counts up to a bound that it does not
            // change, in steps of one or a power of two, so that it ends.
            let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(name),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Nothing is read from workgroup memory that was not written.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            Pipeline { pipeline, layout }
        })
    }
}

/// Arguments that the source has a constant of the same name for, with their values.
fn constants(entry: &Entry, arguments: &[u8], source: &str) -> Vec<(&'static str, u32)> {
    let words = arguments.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let named = entry.arguments.iter().zip(words);
    let wanted = named.filter(|(field, _)| source.contains(&declaration(field.name)));
    wanted.map(|(field, value)| (field.name, value)).collect()
}

fn declaration(name: &str) -> String {
    format!("\nconst {name}: u32 = ")
}

/// The source with these values of its constants.
fn specialised(source: &str, constants: &[(&str, u32)]) -> String {
    let mut text = source.to_owned();
    for (name, value) in constants {
        let declaration = declaration(name);
        if let Some((before, after)) = text.split_once(&declaration)
            && let Some((_, rest)) = after.split_once(';')
        {
            text = format!("{before}{declaration}{value}u;{rest}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use motley_kernels::attention;

    use super::*;

    #[test]
    fn constants_of_a_source_take_the_values_of_arguments() {
        let mut arguments = [0; 68];
        arguments[20] = 96;
        let source = attention::KERNEL.wgsl;
        let constants = constants(&attention::FORWARD, &arguments, source);
        let wanted = [("head_dim", 96), ("stride", 0), ("query", 0), ("key", 0), ("value", 0)];
        assert_eq!(constants, wanted);
        let text = specialised(source, &constants);
        for line in ["\nconst head_dim: u32 = 96u;\n", "\nconst value: u32 = 0u;\n"] {
            assert!(text.contains(line), "{text}");
        }
    }
}
