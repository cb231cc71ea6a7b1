//! The forward pass over a packed batch, and the steps that both families share: one function for each, leaving a
//! record if there is a tape.

use motley_backends::{Buffer, Category, Direction, Epilogue, Linear};
use motley_kernels::{attention, dropout, lora, normalize, pool};

use super::Encoder;
use super::parts::Frame;
use crate::adapter::{Module, SITES_A_LAYER};
use crate::device::{Device, Tensor};
use crate::tape::{LinearAt, NormAt, Saved, Tape, Value};
use crate::{PackedBatch, Result};

/// Site of the attention's draws within a layer; those below are the adapters' roles.
const ATTENTION_SITE: u32 = 8;

/// A packed batch on a device.
pub(crate) struct DeviceBatch {
    pub(super) tokens: usize,
    pub(super) texts: usize,
    longest: usize,
    pub(super) token_ids: Buffer,
    pub(super) position_ids: Buffer,
    pub(super) type_ids: Buffer,
    pub(super) rows: Buffer,
    pub(super) cumulative_lengths: Buffer,
}

impl DeviceBatch {
    pub(crate) fn upload(device: &Device, batch: &PackedBatch) -> Result<Self> {
        let upload = |values: &[u32]| device.upload_u32(values, Category::Activations);
        Ok(DeviceBatch {
            tokens: batch.tokens(),
            texts: batch.texts(),
            longest: batch.longest(),
            token_ids: upload(&batch.token_ids)?,
            position_ids: upload(&batch.position_ids)?,
            type_ids: upload(&batch.type_ids)?,
            rows: upload(&batch.rows)?,
            cumulative_lengths: upload(&batch.cumulative_lengths)?,
        })
    }

    /// Puts another batch of the same sizes, no text of it longer than the longest of this one, in the place of this.
    pub(super) fn replace(&self, device: &Device, batch: &PackedBatch) -> Result<()> {
        assert!(
            (batch.tokens(), batch.texts()) == (self.tokens, self.texts) && batch.longest() <= self.longest,
            "a batch is replaced by one that takes the same launches"
        );
        for (buffer, values) in [
            (&self.token_ids, &batch.token_ids),
            (&self.position_ids, &batch.position_ids),
            (&self.type_ids, &batch.type_ids),
            (&self.rows, &batch.rows),
            (&self.cumulative_lengths, &batch.cumulative_lengths),
        ] {
            device.backend.upload(bytemuck::cast_slice(values), buffer.all())?;
        }
        Ok(())
    }
}

/// What random draws of a training step depend on, besides the name of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Draws {
    pub(crate) seed: u64,
    pub(crate) step: u32,
}

/// One forward pass. With draws it is a training pass; with a tape it can be walked back.
pub(crate) struct Pass<'a> {
    pub(crate) encoder: &'a Encoder,
    pub(crate) batch: &'a DeviceBatch,
    pub(crate) draws: Option<Draws>,
    pub(crate) tape: Option<Tape>,
}

impl Pass<'_> {
    /// The embeddings [texts, hidden]. `checkpoint` keeps of each layer only its input.
    pub(crate) fn run(&mut self, checkpoint: bool) -> Result<Value> {
        let mut x = self.embeddings()?;
        for layer in 0..self.encoder.layers.len() {
            x = if checkpoint { self.layer_checkpointed(layer, x)? } else { self.layer(layer, x)? };
        }
        let x = self.finish(x)?;
        let pooled = self.pool(x)?;
        if self.encoder.pooling.normalize { self.normalize(pooled) } else { Ok(pooled) }
    }

    fn embeddings(&mut self) -> Result<Value> {
        match self.encoder.frame {
            Frame::Bert { .. } => self.bert_embeddings(),
            Frame::Decoder { .. } => self.words(),
        }
    }

    pub(super) fn layer(&mut self, layer: usize, x: Value) -> Result<Value> {
        match self.encoder.frame {
            Frame::Bert { .. } => self.bert_layer(layer, x),
            Frame::Decoder { .. } => self.decoder_layer(layer, x),
        }
    }

    /// What follows the last layer.
    fn finish(&mut self, x: Value) -> Result<Value> {
        match self.encoder.frame {
            Frame::Bert { .. } => Ok(x),
            Frame::Decoder { .. } => self.root_norm(NormAt::Frame, &x),
        }
    }

    /// A layer of which the tape keeps the input alone; backward runs it again.
    fn layer_checkpointed(&mut self, layer: usize, x: Value) -> Result<Value> {
        let tape = self.tape.take();
        let input = Value { tensor: x.tensor.clone(), node: None };
        let out = self.layer(layer, input)?;
        self.tape = tape;
        let trained = x.node.is_some() || self.encoder.layer_is_adapted(layer);
        Ok(self.record(out.tensor, [x.node, None], trained, || Saved::Layer { layer, x }))
    }

    pub(super) fn record(
        &mut self,
        tensor: Tensor,
        inputs: [Option<usize>; 2],
        trained: bool,
        saved: impl FnOnce() -> Saved,
    ) -> Value {
        let tape = self.tape.as_mut().filter(|_| trained || inputs.iter().any(Option::is_some));
        let node = tape.map(|tape| tape.push(inputs, saved()));
        Value { tensor, node }
    }

    pub(super) fn device(&self) -> &Device {
        &self.encoder.device
    }

    /// x·Wᵀ + bias, and what the adapter adds.
    pub(super) fn linear(&mut self, at: LinearAt, x: &Value) -> Result<Value> {
        let (weight, _) = self.encoder.linear(at);
        let output = self.device().activation(x.tensor.rows, weight.shape()[0])?;
        self.device().backend.linear(&Linear {
            weight,
            direction: Direction::Forward,
            rows: x.tensor.rows,
            input: x.tensor.bound(),
            output: output.bound(),
            epilogue: Epilogue::Bias,
            accumulate: false,
        })?;
        let modules = self.encoder.adapted(at);
        let mut hidden = Vec::with_capacity(modules.len());
        for (module, column) in &modules {
            hidden.push(self.add_adapter(module, *column, &x.tensor, &output)?);
        }
        let adapted = !modules.is_empty();
        let saved = || Saved::Linear { at, x: adapted.then(|| x.tensor.clone()), hidden };
        Ok(self.record(output, [x.node, None], adapted, saved))
    }

    /// Adds scale·(dropout(x)·Aᵀ)·Bᵀ to the columns of `output` from `column` on and returns dropout(x)·Aᵀ.
    fn add_adapter(&self, module: &Module, column: usize, x: &Tensor, output: &Tensor) -> Result<Tensor> {
        let adapter = self.encoder.adapter.as_ref().expect("modules come from the adapter");
        let rank = adapter.config.rank;
        let hidden = self.device().wide(x.rows, rank)?;
        let dropped = self.adapter_input(module, x)?;
        let down = lora_args(x.rows, rank, (module.inputs, module.inputs, 0), 1.0);
        let factor = module.a_in(&adapter.parameters, rank);
        self.device().launch(&lora::DOT, &down, &[dropped.bound(), factor, hidden.bound()])?;
        let up = lora_args(x.rows, rank, (module.outputs, output.width, column), adapter.config.scale());
        let factor = module.b_in(&adapter.parameters, rank);
        self.device().launch(&lora::EXPAND, &up, &[hidden.bound(), factor, output.bound()])?;
        Ok(hidden)
    }

    /// What a module's first factor is multiplied with: x, in training after the adapter's dropout.
    pub(super) fn adapter_input(&self, module: &Module, x: &Tensor) -> Result<Tensor> {
        let probability = self.encoder.adapter.as_ref().map_or(0.0, |adapter| adapter.config.dropout);
        match self.dropout_args(x, probability, module.site()) {
            None => Ok(x.clone()),
            Some(args) => {
                let y = self.device().activation(x.rows, x.width)?;
                let bindings = [x.bound(), self.batch.rows.all(), y.bound()];
                self.device().launch(&dropout::APPLY, &args, &bindings)?;
                Ok(y)
            }
        }
    }

    /// Nothing where nothing is dropped.
    pub(super) fn dropout_args(&self, x: &Tensor, probability: f32, site: u32) -> Option<dropout::Args> {
        let draws = self.draws.filter(|_| probability > 0.0)?;
        Some(dropout::Args {
            rows: x.rows as u32,
            features: x.width as u32,
            probability,
            seed_low: draws.seed as u32,
            seed_high: (draws.seed >> 32) as u32,
            step: draws.step,
            site,
            stride: x.width as u32,
            offset: 0,
        })
    }

    pub(super) fn attention_args(&self, layer: usize) -> attention::Args {
        let (config, batch) = (&self.encoder.config, self.batch);
        let [query, key] = [config.heads, config.kv_heads].map(|heads| (heads * config.head_dim) as u32);
        let draws = self.draws.unwrap_or(Draws { seed: 0, step: 0 });
        let dropout = if self.draws.is_some() { self.encoder.attention_dropout() } else { 0.0 };
        attention::Args {
            tokens: batch.tokens as u32,
            texts: batch.texts as u32,
            longest: batch.longest as u32,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            stride: query + 2 * key,
            query: 0,
            key: query,
            value: query + key,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            causal: u32::from(config.decoder.as_ref().is_some_and(|decoder| decoder.is_causal)),
            dropout,
            seed_low: draws.seed as u32,
            seed_high: (draws.seed >> 32) as u32,
            step: draws.step,
            site: layer as u32 * SITES_A_LAYER + ATTENTION_SITE,
        }
    }

    pub(super) fn attention(&mut self, layer: usize, qkv: Value) -> Result<Value> {
        let (tokens, config) = (self.batch.tokens, &self.encoder.config);
        let out = self.device().activation(tokens, config.heads * config.head_dim)?;
        let log_sum_exp = self.device().wide(tokens, config.heads)?;
        let bindings = [
            qkv.tensor.bound(),
            self.batch.cumulative_lengths.all(),
            self.batch.rows.all(),
            out.bound(),
            log_sum_exp.bound(),
        ];
        self.device().launch(&attention::FORWARD, &self.attention_args(layer), &bindings)?;
        let (node, qkv) = (qkv.node, qkv.tensor);
        let kept = out.clone();
        Ok(self.record(out, [node, None], false, || Saved::Attention { layer, qkv, out: kept, log_sum_exp }))
    }

    pub(super) fn pool_args(&self) -> pool::Args {
        pool::Args {
            texts: self.batch.texts as u32,
            hidden: self.encoder.config.hidden as u32,
            kind: self.encoder.pooling.kind as u32,
        }
    }

    fn pool(&mut self, x: Value) -> Result<Value> {
        let out = self.device().wide(self.batch.texts, self.encoder.config.hidden)?;
        let bindings = [x.tensor.bound(), self.batch.cumulative_lengths.all(), out.bound()];
        self.device().launch(&pool::FORWARD, &self.pool_args(), &bindings)?;
        let (node, x) = (x.node, x.tensor);
        Ok(self.record(out, [node, None], false, || Saved::Pool { x }))
    }

    fn normalize(&mut self, x: Value) -> Result<Value> {
        let (rows, width) = (x.tensor.rows, x.tensor.width);
        let (y, length) = (self.device().wide(rows, width)?, self.device().wide(rows, 1)?);
        let args = normalize::Args { rows: rows as u32, width: width as u32 };
        let bindings = [x.tensor.bound(), y.bound(), length.bound()];
        self.device().launch(&normalize::FORWARD, &args, &bindings)?;
        let kept = y.clone();
        Ok(self.record(y, [x.node, None], false, || Saved::Normalize { y: kept, length }))
    }
}

/// `place` is (width, stride, first column) of the wide side.
pub(super) fn lora_args(rows: usize, rank: usize, place: (usize, usize, usize), scale: f32) -> lora::Args {
    let (width, stride, offset) = place;
    lora::Args {
        rows: rows as u32,
        rank: rank as u32,
        width: width as u32,
        stride: stride as u32,
        offset: offset as u32,
        scale,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Role;
    use crate::adapter::module_site;
    use crate::encoder::bert::{ATTENTION_OUTPUT_SITE, EMBEDDINGS_SITE, OUTPUT_SITE};

    #[test]
    fn no_two_places_of_a_model_draw_from_one_site() {
        let (layers, heads) = (24, 16);
        let mut sites = BTreeSet::from([EMBEDDINGS_SITE]);
        let mut count = 1;
        for layer in 0..layers {
            let roles = [
                Role::Query,
                Role::Key,
                Role::Value,
                Role::AttentionOutput,
                Role::Intermediate,
                Role::Output,
                Role::Gate,
            ];
            assert_eq!(roles.len(), Role::COUNT);
            let modules = roles.map(|role| module_site(layer, role));
            let first = layer as u32 * SITES_A_LAYER;
            let heads = (0..heads).map(|head| attention::head_site(first + ATTENTION_SITE, head));
            let all: Vec<u32> = modules
                .into_iter()
                .chain([first + ATTENTION_OUTPUT_SITE, first + OUTPUT_SITE])
                .chain(heads)
                .collect();
            count += all.len();
            sites.extend(all);
        }
        assert_eq!(sites.len(), count);
    }
}
