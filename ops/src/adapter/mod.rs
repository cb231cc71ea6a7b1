//! Low-rank adapters: y += scale·(x·Aᵀ)·Bᵀ beside a frozen linear layer.
//!
//! All factors lie in one flat buffer, module after module, A [rank, in] then Bᵀ [rank, out], each at a multiple of
//! [`ALIGNMENT`] elements: the optimizer, the norm and the exchange between nodes see one vector.

mod config;
mod peft;

use motley_backends::{Buffer, Category, View};
use motley_kernels::dropout::philox::{philox, uniform};

pub(crate) use config::SITES_A_LAYER;
pub use config::{LoraConfig, Targets};
pub use peft::BaseIdentity;
use peft::Factors;

use crate::device::{Device, elements};
use crate::encoder::Encoder;
use crate::{ModelConfig, Result, Role};

/// Factors start at multiples of this many elements: 256 bytes, what a wgpu adapter may ask of the offset of a
/// binding, and whole cache lines everywhere else.
const ALIGNMENT: usize = 64;

/// An adapter on a device.
pub struct Adapter {
    pub(crate) config: LoraConfig,
    pub(crate) modules: Vec<Module>,
    /// Index into `modules` by layer and role.
    index: Vec<Option<usize>>,
    /// Elements of the flat buffer.
    pub(crate) count: usize,
    pub(crate) parameters: Buffer,
    device: Device,
    model: ModelConfig,
}

/// Where the factors of one linear layer lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) layer: usize,
    pub(crate) role: Role,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// First element of A.
    pub(crate) a: usize,
    /// First element of Bᵀ.
    pub(crate) b: usize,
}

impl Module {
    /// A [rank, in] in a flat buffer of factors or of their gradients.
    pub(crate) fn a_in<'a>(&self, flat: &'a Buffer, rank: usize) -> View<'a> {
        elements(flat, self.a, rank * self.inputs)
    }

    /// Bᵀ [rank, out] in such a buffer.
    pub(crate) fn b_in<'a>(&self, flat: &'a Buffer, rank: usize) -> View<'a> {
        elements(flat, self.b, rank * self.outputs)
    }

    /// Site of the random draws at the adapter's input.
    pub(crate) fn site(&self) -> u32 {
        module_site(self.layer, self.role)
    }
}

pub(crate) fn module_site(layer: usize, role: Role) -> u32 {
    layer as u32 * SITES_A_LAYER + role as u32
}

impl Adapter {
    /// A new adapter for `encoder`: A ~ U(±1/√in) (PEFT's kaiming_uniform with a = √5) drawn from `seed`, B = 0, so
    /// that nothing changes before the first step.
    ///
    /// # Errors
    /// Targets that match nothing, values out of range, no memory.
    pub fn new(encoder: &Encoder, config: &LoraConfig, seed: u64) -> Result<Self> {
        let modules = config.resolve(encoder.config())?;
        let (rank, model) = (config.rank, encoder.config());
        let factors = modules.iter().map(|&(layer, role)| {
            let [inputs, outputs] = role.widths(model);
            Factors {
                a: draw_a(seed, module_site(layer, role), rank, inputs),
                b_transposed: vec![0.0; rank * outputs],
            }
        });
        let factors: Vec<Factors> = factors.collect();
        Self::place(encoder, config.clone(), &modules, &factors)
    }

    /// Reads PEFT's two files.
    ///
    /// # Errors
    /// Malformed files, a variant of LoRA that is not supported, tensors that do not fit the model.
    pub fn from_peft(encoder: &Encoder, config_json: &str, tensors: &[u8]) -> Result<Self> {
        Self::from_tensors(encoder, &peft::parse_config(config_json)?, tensors)
    }

    /// Reads adapter_model.safetensors with a configuration that is known otherwise.
    ///
    /// # Errors
    /// As [`Adapter::from_peft`].
    pub fn from_tensors(encoder: &Encoder, config: &LoraConfig, tensors: &[u8]) -> Result<Self> {
        let modules = config.resolve(encoder.config())?;
        let factors = peft::parse_factors(tensors, config.rank, &modules, encoder.config())?;
        Self::place(encoder, config.clone(), &modules, &factors)
    }

    /// An adapter without values, on the backend that only counts.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub(crate) fn blank(encoder: &Encoder, config: &LoraConfig) -> Result<Self> {
        let places = config.resolve(encoder.config())?;
        let (modules, count) = layout(encoder.config(), config.rank, &places);
        let parameters = encoder.device().zeros(count, Category::Adapter)?;
        Ok(Self::of(encoder, config.clone(), (modules, count), parameters))
    }

    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Number of trained values.
    pub fn parameter_count(&self) -> usize {
        self.modules.iter().map(|module| self.config.rank * (module.inputs + module.outputs)).sum()
    }

    /// adapter_model.safetensors.
    ///
    /// # Errors
    /// The device failed.
    pub fn to_peft_safetensors(&self) -> Result<Vec<u8>> {
        let flat = self.parameters()?;
        let rank = self.config.rank;
        let factors = self.modules.iter().map(|module| Factors {
            a: flat[module.a..][..rank * module.inputs].to_vec(),
            b_transposed: flat[module.b..][..rank * module.outputs].to_vec(),
        });
        let factors: Vec<Factors> = factors.collect();
        Ok(peft::factors_file(&self.model, rank, &self.places(), &factors))
    }

    /// adapter_config.json.
    pub fn to_peft_config(&self, base: &BaseIdentity) -> String {
        peft::config_json(&self.config, &self.model, base)
    }

    /// The flat parameters, f32, padding included.
    ///
    /// # Errors
    /// The device failed.
    pub fn parameters(&self) -> Result<Vec<f32>> {
        self.device.download(self.parameters.all(), self.count)
    }

    pub(crate) fn set_parameters(&self, flat: &[f32]) -> Result<()> {
        Ok(self.device.backend.upload(bytemuck::cast_slice(flat), self.parameters.all())?)
    }

    pub(crate) fn module(&self, layer: usize, role: Role) -> Option<&Module> {
        let index = self.index.get(layer * Role::COUNT + role as usize)?;
        index.map(|index| &self.modules[index])
    }

    /// scale·B·A of one module, [out, in], in f64 rounded once.
    pub(crate) fn update(&self, flat: &[f32], module: &Module) -> Vec<f32> {
        let (rank, scale) = (self.config.rank, f64::from(self.config.scale()));
        let (a, b) = (&flat[module.a..], &flat[module.b..]);
        let mut update = Vec::with_capacity(module.outputs * module.inputs);
        for output in 0..module.outputs {
            for input in 0..module.inputs {
                let term = |r: usize| {
                    f64::from(b[r * module.outputs + output]) * f64::from(a[r * module.inputs + input])
                };
                update.push((scale * (0..rank).map(term).sum::<f64>()) as f32);
            }
        }
        update
    }

    fn places(&self) -> Vec<(usize, Role)> {
        self.modules.iter().map(|module| (module.layer, module.role)).collect()
    }

    fn place(
        encoder: &Encoder,
        config: LoraConfig,
        places: &[(usize, Role)],
        factors: &[Factors],
    ) -> Result<Self> {
        let (modules, count) = layout(encoder.config(), config.rank, places);
        let mut flat = vec![0.0; count];
        for (module, factors) in modules.iter().zip(factors) {
            flat[module.a..][..factors.a.len()].copy_from_slice(&factors.a);
            flat[module.b..][..factors.b_transposed.len()].copy_from_slice(&factors.b_transposed);
        }
        let parameters = encoder.device().upload_f32(&flat, Category::Adapter)?;
        Ok(Self::of(encoder, config, (modules, count), parameters))
    }

    fn of(
        encoder: &Encoder,
        config: LoraConfig,
        (modules, count): (Vec<Module>, usize),
        parameters: Buffer,
    ) -> Self {
        let mut index = vec![None; encoder.config().layers * Role::COUNT];
        for (i, module) in modules.iter().enumerate() {
            index[module.layer * Role::COUNT + module.role as usize] = Some(i);
        }
        let (device, model) = (encoder.device().clone(), encoder.config().clone());
        Adapter { config, modules, index, count, parameters, device, model }
    }
}

/// Places of the factors, and the length of the flat buffer.
fn layout(model: &ModelConfig, rank: usize, places: &[(usize, Role)]) -> (Vec<Module>, usize) {
    let mut next = 0;
    let mut take = |count: usize| {
        let start = next;
        next += count.next_multiple_of(ALIGNMENT);
        start
    };
    let modules = places
        .iter()
        .map(|&(layer, role)| {
            let [inputs, outputs] = role.widths(model);
            Module { layer, role, inputs, outputs, a: take(rank * inputs), b: take(rank * outputs) }
        })
        .collect();
    (modules, next)
}

/// Third word of the counter of initial draws: no sample id of a training draw is as large in practice, and a clash
/// would only reuse a number.
const INITIAL: u32 = u32::MAX;

fn draw_a(seed: u64, site: u32, rank: usize, inputs: usize) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let bound = 1.0 / (inputs as f32).sqrt();
    let words =
        (0..(rank * inputs).div_ceil(4) as u32).flat_map(|block| philox([block, site, INITIAL, 0], key));
    words.take(rank * inputs).map(|word| (2.0 * uniform(word) - 1.0) * bound).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_factors_fill_their_range_evenly_and_differ_by_module() {
        let a = draw_a(42, 3, 8, 400);
        let bound = 0.05;
        assert!(a.iter().all(|value| value.abs() <= bound));
        let mean = a.iter().sum::<f32>() / 3200.0;
        let variance = a.iter().map(|value| value * value).sum::<f32>() / 3200.0;
        // U(±b): variance b²/3; standard errors of mean and variance at n = 3200 are 5e-4 and 1.3e-5.
        assert!(mean.abs() < 2e-3 && (variance - bound * bound / 3.0).abs() < 5e-5, "{mean} {variance}");
        assert_ne!(a, draw_a(42, 4, 8, 400));
        assert_ne!(a, draw_a(43, 3, 8, 400));
    }

    #[test]
    fn factors_lie_aligned_and_apart() {
        let text = r#"{"model_type":"bert","hidden_size":6,"num_hidden_layers":1,"num_attention_heads":2,
            "intermediate_size":10,"vocab_size":30}"#;
        let model = ModelConfig::parse(text).unwrap();
        let (modules, count) = layout(&model, 3, &[(0, Role::Query), (0, Role::Output)]);
        assert_eq!((modules[0].a, modules[0].b, modules[1].a, modules[1].b, count), (0, 64, 128, 192, 256));
    }
}
