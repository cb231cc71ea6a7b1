//! From files to a device; or without files, for counting memory.

use motley_backends::{Buffer, Category, Error, SourceDtype, Weight, WeightFormat, WeightPart, WeightSource};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::{Embeddings, Encoder, Layer, LoadOptions, ModelFiles, Norm};
use crate::adapter::{Role, module_path};
use crate::device::Device;
use crate::model::pooling::max_sequence_length;
use crate::model::weights::{RawTensor, Weights};
use crate::{ModelConfig, Pooling, Result};

pub(super) fn load(device: Device, model: &ModelFiles<'_>, options: &LoadOptions) -> Result<Encoder> {
    let config = ModelConfig::parse(model.config_json)?;
    let pooling = Pooling::parse(model.pooling_json, model.modules_json, config.hidden)?;
    let longest = model.sentence_bert_json.map_or(Ok(None), max_sequence_length)?;
    let weights = Some(Weights::open(model.weights)?);
    Builder { device, config, weights, options }.build(pooling, longest)
}

/// Every tensor that [`load`] would read is there with the shape that config.json gives it. Nothing is copied.
pub(super) fn check(model: &ModelFiles<'_>) -> Result<()> {
    let config = ModelConfig::parse(model.config_json)?;
    let weights = Weights::open(model.weights)?;
    let norm = |path: &str| -> Result<()> {
        for part in ["weight", "bias"] {
            weights.raw(&norm_name(path, part), &[config.hidden])?;
        }
        Ok(())
    };
    for (name, rows) in tables(&config) {
        weights.raw(&table_name(name), &[rows, config.hidden])?;
    }
    norm("embeddings")?;
    for layer in 0..config.layers {
        for role in Role::ALL {
            let ([inputs, outputs], path) = (role.widths(&config), module_path(layer, role));
            weights.raw(&format!("{path}.weight"), &[outputs, inputs])?;
            weights.raw(&format!("{path}.bias"), &[outputs])?;
        }
        norm(&attention_norm(layer))?;
        norm(&output_norm(layer))?;
    }
    Ok(())
}

/// A model without values, on a device that only counts.
pub(super) fn blank(device: Device, config: &ModelConfig, options: &LoadOptions) -> Result<Encoder> {
    let pooling = Pooling::parse(None, None, config.hidden)?;
    Builder { device, config: config.clone(), weights: None, options }.build(pooling, None)
}

/// A model with small random weights, all stored as bf16. The file is made in memory.
pub(super) fn random(
    device: Device,
    config: &ModelConfig,
    options: &LoadOptions,
    seed: u64,
) -> Result<Encoder> {
    let mut tensors: Vec<(String, Vec<usize>)> = Vec::new();
    let norm = |tensors: &mut Vec<(String, Vec<usize>)>, path: &str| {
        tensors.extend(["weight", "bias"].map(|part| (norm_name(path, part), vec![config.hidden])));
    };
    for (name, rows) in tables(config) {
        tensors.push((table_name(name), vec![rows, config.hidden]));
    }
    norm(&mut tensors, "embeddings");
    for layer in 0..config.layers {
        for role in Role::ALL {
            let ([inputs, outputs], path) = (role.widths(config), module_path(layer, role));
            tensors.push((format!("{path}.weight"), vec![outputs, inputs]));
            tensors.push((format!("{path}.bias"), vec![outputs]));
        }
        norm(&mut tensors, &attention_norm(layer));
        norm(&mut tensors, &output_norm(layer));
    }
    let mut state = seed | 1;
    let bytes: Vec<Vec<u8>> =
        tensors.iter().map(|(_, shape)| random_bf16(&mut state, shape.iter().product())).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).map_err(crate::Error::WeightFile)?;
        Ok((name.clone(), view))
    });
    let file = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None);
    let file = file.map_err(crate::Error::WeightFile)?;
    drop(bytes);
    let pooling = Pooling::parse(None, None, config.hidden)?;
    let weights = Some(Weights::open(&[&file])?);
    Builder { device, config: config.clone(), weights, options }.build(pooling, None)
}

/// Values of magnitude 2⁻⁵ to 2⁻⁴ and either sign, by xorshift (Marsaglia 2003).
fn random_bf16(state: &mut u64, count: usize) -> Vec<u8> {
    let value = |_| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        ((*state >> 32) as u16 & 0x807f | 0x3d00).to_le_bytes()
    };
    (0..count).flat_map(value).collect()
}

/// Names of the embedding tables, with their rows.
fn tables(config: &ModelConfig) -> [(&'static str, usize); 3] {
    [("word", config.vocabulary), ("position", config.position_rows), ("token_type", config.token_types)]
}

fn table_name(name: &str) -> String {
    format!("embeddings.{name}_embeddings.weight")
}

fn norm_name(path: &str, part: &str) -> String {
    format!("{path}.LayerNorm.{part}")
}

fn attention_norm(layer: usize) -> String {
    format!("encoder.layer.{layer}.attention.output")
}

fn output_norm(layer: usize) -> String {
    format!("encoder.layer.{layer}.output")
}

struct Builder<'a> {
    device: Device,
    config: ModelConfig,
    /// Absent: every tensor is taken to be there, and only its size counts.
    weights: Option<Weights<'a>>,
    options: &'a LoadOptions,
}

impl Builder<'_> {
    fn build(self, mut pooling: Pooling, max_sequence_length: Option<usize>) -> Result<Encoder> {
        pooling.normalize = self.options.normalize.unwrap_or(pooling.normalize);
        let embeddings = self.embeddings()?;
        let layers = (0..self.config.layers).map(|layer| self.layer(layer)).collect::<Result<Vec<_>>>()?;
        Ok(Encoder {
            embeddings,
            layers,
            pooling,
            dropout: self.options.dropout,
            quantization: self.options.quantization,
            max_sequence_length,
            adapter: None,
            pass_tokens: super::pass_tokens(self.device.backend.info().kind),
            config: self.config,
            device: self.device,
        })
    }

    fn embeddings(&self) -> Result<Embeddings> {
        let [word, position, token_type] =
            tables(&self.config).map(|(name, rows)| self.table(&table_name(name), rows));
        Ok(Embeddings {
            word: word?,
            position: position?,
            token_type: token_type?,
            norm: self.norm("embeddings")?,
        })
    }

    fn table(&self, name: &str, rows: usize) -> Result<Buffer> {
        let hidden = self.config.hidden;
        match &self.weights {
            None => self.device.blank_table(rows, hidden),
            Some(weights) => self.device.upload_table(&weights.f32(name, &[rows, hidden])?),
        }
    }

    fn norm(&self, path: &str) -> Result<Norm> {
        let vector = |part: &str| self.values(&norm_name(path, part), &[self.config.hidden]);
        Ok(Norm { gamma: vector("weight")?, beta: vector("bias")? })
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Buffer> {
        match &self.weights {
            None => self.device.unfilled(shape[0], shape[1..].iter().product(), Category::Weights),
            Some(weights) => self.device.upload_f32(&weights.f32(name, shape)?, Category::Weights),
        }
    }

    fn layer(&self, layer: usize) -> Result<Layer> {
        Ok(Layer {
            qkv: self.linear(layer, &[Role::Query, Role::Key, Role::Value])?,
            attention_output: self.linear(layer, &[Role::AttentionOutput])?,
            attention_norm: self.norm(&attention_norm(layer))?,
            intermediate: self.linear(layer, &[Role::Intermediate])?,
            output: self.linear(layer, &[Role::Output])?,
            output_norm: self.norm(&output_norm(layer))?,
        })
    }

    /// Modules of one input, stacked along the output.
    fn linear(&self, layer: usize, roles: &[Role]) -> Result<Weight> {
        let mut parts = Vec::with_capacity(roles.len());
        let mut bias = Vec::new();
        for role in roles {
            let [inputs, outputs] = role.widths(&self.config);
            let (raw, mut values) = self.module(layer, *role)?;
            bias.append(&mut values);
            parts.push(WeightPart { bytes: raw.bytes, shape: [outputs, inputs], dtype: raw.stored });
        }
        let format = match self.options.quantization {
            None => WeightFormat::F32,
            Some(quantization) => WeightFormat::Nf4 { double_quantization: quantization.double },
        };
        let source = WeightSource { parts: &parts, format, bias: Some(&bias) };
        let named = |error| match error {
            Error::NonFinite { part, element, value } => crate::Error::NonFiniteWeight {
                name: format!("{}.weight", module_path(layer, roles[part])),
                place: [element / parts[part].shape[1], element % parts[part].shape[1]],
                value,
            },
            other => other.into(),
        };
        self.device.backend.prepare_weight(&source).map_err(named)
    }

    /// A module's weight as stored, and its bias.
    fn module(&self, layer: usize, role: Role) -> Result<(RawTensor<'_>, Vec<f32>)> {
        let [inputs, outputs] = role.widths(&self.config);
        let Some(weights) = &self.weights else {
            return Ok((RawTensor { bytes: &[], stored: SourceDtype::F32 }, vec![0.0; outputs]));
        };
        let path = module_path(layer, role);
        let raw = weights.raw(&format!("{path}.weight"), &[outputs, inputs])?;
        Ok((raw, weights.f32(&format!("{path}.bias"), &[outputs])?))
    }
}
