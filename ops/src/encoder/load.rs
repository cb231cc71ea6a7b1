//! From files to a device; or without files, for counting memory and for measuring speed.

use std::borrow::Cow;
use std::ops::Range;

use motley_backends::{Buffer, Category, Error, SourceDtype, Weight, WeightFormat, WeightPart, WeightSource};
use motley_kernels::rope;

use super::parts::{Frame, Layer, Norm, WordPiece, stacked};
use super::{Encoder, LoadOptions, ModelFiles, names, random};
use crate::device::Device;
use crate::model::pooling::max_sequence_length;
use crate::model::weights::{Weights, to_f32};
use crate::plan::PlannedModel;
use crate::tape::{LinearAt, NormAt};
use crate::{ModelConfig, Pooling, Result, Role};

pub(super) fn load(device: Device, model: &ModelFiles<'_>, options: &LoadOptions) -> Result<Encoder> {
    let config = ModelConfig::parse(model.config_json)?;
    let pooling = Pooling::parse(model.pooling_json, model.modules_json, &config)?;
    let longest = model.sentence_bert_json.map_or(Ok(None), max_sequence_length)?;
    let source = Source::Files(Weights::open(model.weights, names::landmark(&config))?);
    Builder { device, config, source, options }.build(pooling, longest)
}

/// Every tensor that [`load`] would read is there with the shape that config.json gives it. Nothing is copied.
pub(super) fn check(model: &ModelFiles<'_>) -> Result<()> {
    let config = ModelConfig::parse(model.config_json)?;
    let weights = Weights::open(model.weights, names::landmark(&config))?;
    names::all(&config).iter().try_for_each(|(name, shape)| weights.raw(name, shape).map(drop))
}

/// What every linear layer's weight is stored in; f32 where they differ. Headers are read alone.
pub(super) fn stored(config: &ModelConfig, files: &[&[u8]]) -> Result<SourceDtype> {
    let weights = Weights::open(files, names::landmark(config))?;
    let places = (0..config.layers).flat_map(|layer| config.roles().iter().map(move |role| (layer, *role)));
    let mut found = None;
    for (layer, role) in places {
        let [inputs, outputs] = role.widths(config);
        let stored = weights.raw(&names::weight(config, layer, role), &[outputs, inputs])?.stored;
        if *found.get_or_insert(stored) != stored {
            return Ok(SourceDtype::F32);
        }
    }
    Ok(found.unwrap_or(SourceDtype::F32))
}

/// A model without values, on a device that only counts.
pub(super) fn blank(device: Device, model: &PlannedModel, options: &LoadOptions) -> Result<Encoder> {
    without_files(device, &model.config, options, Source::Blank(model.stored))
}

pub(super) fn random(
    device: Device,
    config: &ModelConfig,
    options: &LoadOptions,
    seed: u64,
) -> Result<Encoder> {
    without_files(device, config, options, Source::Random(seed))
}

fn without_files(
    device: Device,
    config: &ModelConfig,
    options: &LoadOptions,
    source: Source<'_>,
) -> Result<Encoder> {
    let pooling = Pooling::parse(None, None, config)?;
    Builder { device, config: config.clone(), source, options }.build(pooling, None)
}

/// Where values come from.
enum Source<'a> {
    Files(Weights<'a>),
    /// Every tensor is taken to be there, linear weights so stored, and only sizes count.
    Blank(SourceDtype),
    Random(u64),
}

/// A matrix as stored, row-major, little-endian.
struct Matrix<'a> {
    bytes: Cow<'a, [u8]>,
    shape: [usize; 2],
    dtype: SourceDtype,
}

impl Matrix<'_> {
    fn part(&self) -> WeightPart<'_> {
        WeightPart { bytes: &self.bytes, shape: self.shape, dtype: self.dtype }
    }
}

struct Builder<'a> {
    device: Device,
    config: ModelConfig,
    source: Source<'a>,
    options: &'a LoadOptions,
}

impl Builder<'_> {
    fn build(self, mut pooling: Pooling, max_sequence_length: Option<usize>) -> Result<Encoder> {
        pooling.normalize = self.options.normalize.unwrap_or(pooling.normalize);
        let (words, bound_tokens) = (self.words()?, self.bound_tokens());
        let frame = self.frame()?;
        let layers = (0..self.config.layers).map(|layer| self.layer(layer)).collect::<Result<Vec<_>>>()?;
        Ok(Encoder {
            words,
            frame,
            layers,
            pooling,
            dropout: self.options.dropout,
            quantization: self.options.quantization,
            max_sequence_length,
            adapter: None,
            bound_tokens,
            pass_tokens: super::pass_tokens(self.device.backend.info().kind).min(bound_tokens),
            buckets: None,
            config: self.config,
            device: self.device,
        })
    }

    /// Tokens whose widest activations one binding holds.
    fn bound_tokens(&self) -> usize {
        let Some(bytes) = self.device.backend.binding_limit() else { return usize::MAX };
        let widths = [LinearAt::Qkv(0), LinearAt::Intermediate(0)].map(|at| {
            let roles = stacked(at, self.config.decoder.is_some());
            roles.iter().map(|role| role.widths(&self.config)[1]).sum::<usize>()
        });
        let widest = widths.into_iter().max().unwrap_or(1).max(self.config.hidden);
        (bytes as usize / (widest * self.device.precision().bytes())).max(1)
    }

    fn words(&self) -> Result<Vec<WordPiece>> {
        let (name, total) = (names::landmark(&self.config), self.config.vocabulary);
        let most = self.device.table_rows_max(self.config.hidden);
        let piece = |first: usize| {
            let rows = most.min(total - first);
            Ok(WordPiece { first, rows, table: self.rows(name, total, first..first + rows)? })
        };
        (0..total).step_by(most).map(piece).collect()
    }

    fn frame(&self) -> Result<Frame> {
        let config = &self.config;
        let Some(decoder) = &config.decoder else {
            return Ok(Frame::Bert {
                position: self.table(names::POSITIONS, config.position_rows)?,
                token_type: self.table(names::TOKEN_TYPES, config.token_types)?,
                norm: self.norm(NormAt::Frame)?,
            });
        };
        let (rows, width) = (config.max_positions(), config.head_dim);
        let angles = match self.source {
            Source::Blank(_) => self.device.unfilled(rows, width, Category::Weights)?,
            _ => {
                let angles = rope::table(0..rows, width, decoder.rotation_base);
                self.device.upload_f32(&angles, Category::Weights)?
            }
        };
        Ok(Frame::Decoder { angles, norm: self.norm(NormAt::Frame)? })
    }

    fn layer(&self, layer: usize) -> Result<Layer> {
        let has_head_norms = self.config.decoder.as_ref().is_some_and(|decoder| decoder.head_norms);
        let head_norms = || -> Result<[Buffer; 2]> {
            let [query, key] = names::head_norms(layer);
            Ok([
                self.vector(&query, self.config.head_dim, 1.0)?,
                self.vector(&key, self.config.head_dim, 1.0)?,
            ])
        };
        Ok(Layer {
            qkv: self.linear(layer, LinearAt::Qkv(layer))?,
            head_norms: has_head_norms.then(head_norms).transpose()?,
            attention_output: self.linear(layer, LinearAt::AttentionOutput(layer))?,
            attention_norm: self.norm(NormAt::Attention(layer))?,
            intermediate: self.linear(layer, LinearAt::Intermediate(layer))?,
            output: self.linear(layer, LinearAt::Output(layer))?,
            output_norm: self.norm(NormAt::Output(layer))?,
        })
    }

    fn norm(&self, at: NormAt) -> Result<Norm> {
        let (gamma, beta) = names::norm(&self.config, at);
        let beta = beta.map(|name| self.vector(&name, self.config.hidden, 0.0)).transpose()?;
        Ok(Norm { gamma: self.vector(&gamma, self.config.hidden, 1.0)?, beta })
    }

    /// An embedding table of the model's width.
    fn table(&self, name: &str, rows: usize) -> Result<Buffer> {
        self.rows(name, rows, 0..rows)
    }

    /// Rows of an embedding table that has `total` of them; the first is a multiple of four.
    fn rows(&self, name: &str, total: usize, rows: Range<usize>) -> Result<Buffer> {
        let hidden = self.config.hidden;
        match &self.source {
            Source::Blank(_) => self.device.blank_table(rows.len(), hidden),
            Source::Random(seed) => self.device.upload_table(rows.len(), hidden, |first, count| {
                random::values(*seed, name, (rows.start + first) * hidden, count * hidden)
            }),
            Source::Files(weights) => {
                let raw = weights.raw(name, &[total, hidden])?;
                let row = hidden * raw.stored.bytes();
                self.device.upload_table(rows.len(), hidden, |first, count| {
                    to_f32(&raw.bytes[(rows.start + first) * row..][..count * row], raw.stored)
                })
            }
        }
    }

    /// f32 on the device; `usual` is what it holds where nothing was trained.
    fn vector(&self, name: &str, length: usize, usual: f32) -> Result<Buffer> {
        match &self.source {
            Source::Blank(_) => self.device.unfilled(length, 1, Category::Weights),
            _ => self.device.upload_f32(&self.values(name, length, usual)?, Category::Weights),
        }
    }

    fn values(&self, name: &str, length: usize, usual: f32) -> Result<Vec<f32>> {
        match &self.source {
            Source::Files(weights) => weights.f32(name, &[length]),
            Source::Blank(_) | Source::Random(_) => Ok(vec![usual; length]),
        }
    }

    /// Modules of one input, stacked along the output.
    fn linear(&self, layer: usize, at: LinearAt) -> Result<Weight> {
        let (config, roles) = (&self.config, stacked(at, self.config.decoder.is_some()));
        let matrices = roles.iter().map(|role| self.matrix(layer, *role)).collect::<Result<Vec<_>>>()?;
        let parts: Vec<WeightPart<'_>> = matrices.iter().map(Matrix::part).collect();
        let mut bias = Vec::new();
        for role in roles.iter().filter(|role| config.has_bias(**role)) {
            let outputs = role.widths(config)[1];
            bias.append(&mut self.values(&names::bias(config, layer, *role), outputs, 0.0)?);
        }
        let format = match self.options.quantization {
            None => WeightFormat::F32,
            Some(quantization) => WeightFormat::Nf4 { double_quantization: quantization.double },
        };
        let bias = (!bias.is_empty()).then_some(&bias[..]);
        let named = |error| match error {
            Error::NonFinite { part, element, value } => crate::Error::NonFiniteWeight {
                name: names::weight(config, layer, roles[part]),
                place: [element / parts[part].shape[1], element % parts[part].shape[1]],
                value,
            },
            other => other.into(),
        };
        let source = WeightSource { parts: &parts, format, bias };
        self.device.backend.prepare_weight(&source).map_err(named)
    }

    /// A module's weight.
    fn matrix(&self, layer: usize, role: Role) -> Result<Matrix<'_>> {
        let ([inputs, outputs], name) = (role.widths(&self.config), names::weight(&self.config, layer, role));
        let shape = [outputs, inputs];
        let (bytes, dtype) = match &self.source {
            Source::Blank(stored) => (Cow::Borrowed(&[][..]), *stored),
            Source::Files(weights) => {
                let raw = weights.raw(&name, &shape)?;
                (Cow::Borrowed(raw.bytes), raw.stored)
            }
            Source::Random(seed) => {
                (Cow::Owned(random::halves(*seed, &name, inputs * outputs)), SourceDtype::Bf16)
            }
        };
        Ok(Matrix { bytes, shape, dtype })
    }
}
