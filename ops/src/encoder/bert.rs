//! What the BERT family alone does: three embeddings, norms behind the residuals, one wide product with its
//! activation. Forward and gradient rules stand together.
//!
//! Source: Devlin et al. 2018.

use motley_backends::{Direction, Epilogue, Linear};
use motley_kernels::{dropout, embed, gelu, layer_norm};

use super::backward::Backward;
use super::forward::Pass;
use super::parts::{Frame, Norm};
use crate::Result;
use crate::adapter::SITES_A_LAYER;
use crate::device::Tensor;
use crate::tape::{LinearAt, NormAt, Saved, Value};

/// Sites of the base model's dropout within a layer, beside that of the attention.
pub(super) const ATTENTION_OUTPUT_SITE: u32 = 9;
pub(super) const OUTPUT_SITE: u32 = 10;
/// Behind the embeddings: a site of no layer.
pub(super) const EMBEDDINGS_SITE: u32 = u32::MAX;

impl Pass<'_> {
    pub(super) fn bert_embeddings(&mut self) -> Result<Value> {
        let (batch, hidden) = (self.batch, self.encoder.config.hidden);
        let Frame::Bert { position, token_type, .. } = &self.encoder.frame else {
            unreachable!("models of this family are loaded with their tables")
        };
        let out = self.device().activation(batch.tokens, hidden)?;
        for words in &self.encoder.words {
            let bindings = [
                batch.token_ids.all(),
                batch.position_ids.all(),
                batch.type_ids.all(),
                words.table.all(),
                position.all(),
                token_type.all(),
                out.bound(),
            ];
            self.device().launch(&embed::FORWARD, &words.args(batch.tokens, hidden), &bindings)?;
        }
        let value = self.layer_norm(NormAt::Frame, out)?;
        self.base_dropout(value, EMBEDDINGS_SITE)
    }

    pub(super) fn bert_layer(&mut self, layer: usize, x: Value) -> Result<Value> {
        let site = layer as u32 * SITES_A_LAYER;
        let qkv = self.linear(LinearAt::Qkv(layer), &x)?;
        let mixed = self.attention(layer, qkv)?;
        let mixed = self.linear(LinearAt::AttentionOutput(layer), &mixed)?;
        let mixed = self.base_dropout(mixed, site + ATTENTION_OUTPUT_SITE)?;
        let x = self.residual_layer_norm(NormAt::Attention(layer), mixed, x)?;
        let wide = self.feed_forward_activation(layer, &x)?;
        let out = self.linear(LinearAt::Output(layer), &wide)?;
        drop(wide);
        let out = self.base_dropout(out, site + OUTPUT_SITE)?;
        self.residual_layer_norm(NormAt::Output(layer), out, x)
    }

    /// The first LayerNorm; nothing trained stands before it.
    fn layer_norm(&mut self, at: NormAt, x: Tensor) -> Result<Value> {
        let norm = self.encoder.norm(at);
        let y = self.device().activation(x.rows, x.width)?;
        let (mean, deviation) = (self.device().wide(x.rows, 1)?, self.device().wide(x.rows, 1)?);
        let args = self.layer_norm_args(&x);
        let bindings =
            [x.bound(), norm.gamma.all(), beta(norm).all(), y.bound(), mean.bound(), deviation.bound()];
        self.device().launch(&layer_norm::FORWARD, &args, &bindings)?;
        Ok(Value { tensor: y, node: None })
    }

    fn layer_norm_args(&self, x: &Tensor) -> layer_norm::Args {
        let epsilon = self.encoder.config.layer_norm_epsilon;
        layer_norm::Args { rows: x.rows as u32, hidden: x.width as u32, epsilon }
    }

    /// LayerNorm of x + residual; `x` is written over.
    fn residual_layer_norm(&mut self, at: NormAt, x: Value, residual: Value) -> Result<Value> {
        let norm = self.encoder.norm(at);
        let (sum, inputs) = (x.tensor, [x.node, residual.node]);
        let y = self.device().activation(sum.rows, sum.width)?;
        let mean = self.device().wide(sum.rows, 1)?;
        let reciprocal_deviation = self.device().wide(sum.rows, 1)?;
        let norm_args = self.layer_norm_args(&sum);
        let args = layer_norm::ResidualArgs {
            rows: norm_args.rows,
            hidden: norm_args.hidden,
            epsilon: norm_args.epsilon,
            // As `record` will.
            keep: u32::from(self.tape.is_some() && inputs.iter().any(Option::is_some)),
        };
        let bindings = [
            sum.bound(),
            residual.tensor.bound(),
            norm.gamma.all(),
            beta(norm).all(),
            y.bound(),
            mean.bound(),
            reciprocal_deviation.bound(),
        ];
        self.device().launch(&layer_norm::RESIDUAL_FORWARD, &args, &bindings)?;
        Ok(self.record(y, inputs, false, || Saved::LayerNorm { at, sum, mean, reciprocal_deviation }))
    }

    /// The base model's own dropout, if it was asked for at loading.
    fn base_dropout(&mut self, x: Value, site: u32) -> Result<Value> {
        let Some(args) = self.dropout_args(&x.tensor, self.encoder.hidden_dropout(), site) else {
            return Ok(x);
        };
        let y = self.device().activation(x.tensor.rows, x.tensor.width)?;
        let bindings = [x.tensor.bound(), self.batch.rows.all(), y.bound()];
        self.device().launch(&dropout::APPLY, &args, &bindings)?;
        Ok(self.record(y, [x.node, None], false, || Saved::Dropout { site }))
    }

    /// The wide half of a feed-forward block. The activation is fused with the product where nothing stands between
    /// them and nothing is kept.
    fn feed_forward_activation(&mut self, layer: usize, x: &Value) -> Result<Value> {
        let (at, kind) = (LinearAt::Intermediate(layer), self.encoder.config.activation);
        if self.draws.is_none() && self.tape.is_none() && self.encoder.adapted(at).is_empty() {
            let (weight, _) = self.encoder.linear(at);
            let output = self.device().activation(x.tensor.rows, weight.shape()[0])?;
            self.device().backend.linear(&Linear {
                weight,
                direction: Direction::Forward,
                rows: x.tensor.rows,
                input: x.tensor.bound(),
                output: output.bound(),
                epilogue: Epilogue::BiasActivation(kind),
                accumulate: false,
            })?;
            return Ok(Value { tensor: output, node: None });
        }
        let wide = self.linear(at, x)?;
        let y = self.device().activation(wide.tensor.rows, wide.tensor.width)?;
        let args = gelu::Args { count: y.count() as u32, kind: kind as u32 };
        self.device().launch(&gelu::FORWARD, &args, &[wide.tensor.bound(), y.bound()])?;
        let (x, node) = (wide.tensor, wide.node);
        Ok(self.record(y, [node, None], false, || Saved::Activation { x }))
    }
}

fn beta(norm: &Norm) -> &motley_backends::Buffer {
    norm.beta.as_ref().expect("models of this family are loaded with it")
}

impl Backward<'_> {
    pub(super) fn layer_norm(&self, at: NormAt, dy: &Tensor, saved: [&Tensor; 3]) -> Result<Tensor> {
        let [sum, mean, reciprocal_deviation] = saved;
        let dx = self.device().activation(dy.rows, dy.width)?;
        let bindings = [
            dy.bound(),
            sum.bound(),
            self.encoder.norm(at).gamma.all(),
            mean.bound(),
            reciprocal_deviation.bound(),
            dx.bound(),
        ];
        self.device().launch(&layer_norm::BACKWARD, &self.pass().layer_norm_args(sum), &bindings)?;
        Ok(dx)
    }

    pub(super) fn activation(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let dx = self.device().activation(dy.rows, dy.width)?;
        let args = gelu::Args { count: dy.count() as u32, kind: self.encoder.config.activation as u32 };
        self.device().launch(&gelu::BACKWARD, &args, &[dy.bound(), x.bound(), dx.bound()])?;
        Ok(dx)
    }

    pub(super) fn dropout(&self, dy: &Tensor, site: u32) -> Result<Tensor> {
        let args = self.pass().dropout_args(dy, self.encoder.hidden_dropout(), site);
        let args = args.expect("a record of dropout is made only where something is dropped");
        let dx = self.device().activation(dy.rows, dy.width)?;
        self.device().launch(&dropout::APPLY, &args, &[dy.bound(), self.batch.rows.all(), dx.bound()])?;
        Ok(dx)
    }
}
