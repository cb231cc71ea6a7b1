//! From files to a device.

use motley_backends::{Error, Weight, WeightFormat, WeightPart, WeightSource};

use super::{Embeddings, Encoder, Layer, LoadOptions, ModelFiles, Norm};
use crate::adapter::{Role, module_path};
use crate::device::Device;
use crate::model::pooling::max_sequence_length;
use crate::model::weights::Weights;
use crate::{ModelConfig, Pooling, Result};

pub(super) fn load(device: Device, model: &ModelFiles<'_>, options: &LoadOptions) -> Result<Encoder> {
    let config = ModelConfig::parse(model.config_json)?;
    let pooling = Pooling::parse(model.pooling_json, model.modules_json, config.hidden)?;
    let longest = model.sentence_bert_json.map_or(Ok(None), max_sequence_length)?;
    let weights = Weights::open(model.weights)?;
    Builder { device, config, weights, options }.build(pooling, longest)
}

pub(super) fn blank(device: Device, config: &ModelConfig, options: &LoadOptions) -> Result<Encoder> {
    let pooling = Pooling::parse(None, None, config.hidden)?;
    Builder { device, config: config.clone(), weights: Weights::Zeros, options }.build(pooling, None)
}

struct Builder<'a> {
    device: Device,
    config: ModelConfig,
    weights: Weights<'a>,
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
            config: self.config,
            device: self.device,
        })
    }

    fn embeddings(&self) -> Result<Embeddings> {
        let config = &self.config;
        let table = |name: &str, rows: usize| {
            let name = format!("embeddings.{name}_embeddings.weight");
            Encoder::weights(&self.device, &self.weights.f32(&name, &[rows, config.hidden])?)
        };
        Ok(Embeddings {
            word: table("word", config.vocabulary)?,
            position: table("position", config.position_rows)?,
            token_type: table("token_type", config.token_types)?,
            norm: self.norm("embeddings")?,
        })
    }

    fn norm(&self, path: &str) -> Result<Norm> {
        let vector = |part: &str| {
            let values = self.weights.f32(&format!("{path}.LayerNorm.{part}"), &[self.config.hidden])?;
            Encoder::weights(&self.device, &values)
        };
        Ok(Norm { gamma: vector("weight")?, beta: vector("bias")? })
    }

    fn layer(&self, layer: usize) -> Result<Layer> {
        Ok(Layer {
            qkv: self.linear(layer, &[Role::Query, Role::Key, Role::Value])?,
            attention_output: self.linear(layer, &[Role::AttentionOutput])?,
            attention_norm: self.norm(&format!("encoder.layer.{layer}.attention.output"))?,
            intermediate: self.linear(layer, &[Role::Intermediate])?,
            output: self.linear(layer, &[Role::Output])?,
            output_norm: self.norm(&format!("encoder.layer.{layer}.output"))?,
        })
    }

    /// Modules of one input, stacked along the output.
    fn linear(&self, layer: usize, roles: &[Role]) -> Result<Weight> {
        let mut raw = Vec::with_capacity(roles.len());
        let mut bias = Vec::new();
        for role in roles {
            let [inputs, outputs] = role.widths(&self.config);
            let path = module_path(layer, *role);
            raw.push((self.weights.raw(&format!("{path}.weight"), &[outputs, inputs])?, [outputs, inputs]));
            bias.extend(self.weights.f32(&format!("{path}.bias"), &[outputs])?);
        }
        let parts = raw.iter().map(|(tensor, shape)| WeightPart {
            bytes: &tensor.bytes,
            shape: *shape,
            dtype: tensor.stored,
        });
        let parts: Vec<WeightPart<'_>> = parts.collect();
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
}
