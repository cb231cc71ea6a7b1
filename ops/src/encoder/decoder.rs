//! What decoders alone do: words by themselves, norms by the root mean square before each block, rotated heads, a
//! gated feed-forward block. Forward and gradient rules stand together.
//!
//! ```text
//! x → norm → q,k,v → (norms of heads) → rotation → attention → product → + x
//!   → norm → gate, up → silu(gate)·up → product → + x
//! ```
//!
//! Source: Llama (Touvron et al. 2023); the norms of heads are Qwen3's.

use motley_kernels::{embed, head_norm, rms_norm, rope, swiglu};

use super::backward::Backward;
use super::forward::Pass;
use super::parts::Frame;
use crate::Result;
use crate::device::Tensor;
use crate::tape::{LinearAt, NormAt, Saved, Value};

impl Pass<'_> {
    pub(super) fn words(&mut self) -> Result<Value> {
        let (batch, hidden) = (self.batch, self.encoder.config.hidden);
        let out = self.device().activation(batch.tokens, hidden)?;
        for words in &self.encoder.words {
            let bindings = [batch.token_ids.all(), words.table.all(), out.bound()];
            self.device().launch(&embed::WORDS, &words.args(batch.tokens, hidden), &bindings)?;
        }
        Ok(Value { tensor: out, node: None })
    }

    pub(super) fn decoder_layer(&mut self, layer: usize, x: Value) -> Result<Value> {
        let normed = self.root_norm(NormAt::Attention(layer), &x)?;
        let qkv = self.linear(LinearAt::Qkv(layer), &normed)?;
        drop(normed);
        let qkv = self.head_norm(layer, qkv)?;
        let qkv = self.rotate(qkv)?;
        let mixed = self.attention(layer, qkv)?;
        let block = self.linear(LinearAt::AttentionOutput(layer), &mixed)?;
        drop(mixed);
        let (x, normed) = self.residual_root_norm(NormAt::Output(layer), block, x)?;
        let wide = self.linear(LinearAt::Intermediate(layer), &normed)?;
        drop(normed);
        let gated = self.gate(wide)?;
        let block = self.linear(LinearAt::Output(layer), &gated)?;
        drop(gated);
        self.sum(block, x)
    }

    pub(super) fn root_norm(&mut self, at: NormAt, x: &Value) -> Result<Value> {
        let norm = self.encoder.norm(at);
        let y = self.device().activation(x.tensor.rows, x.tensor.width)?;
        let reciprocal_root = self.device().wide(x.tensor.rows, 1)?;
        let args = self.root_norm_args(&x.tensor);
        let bindings = [x.tensor.bound(), norm.gamma.all(), y.bound(), reciprocal_root.bound()];
        self.device().launch(&rms_norm::FORWARD, &args, &bindings)?;
        let kept = x.tensor.clone();
        Ok(self.record(y, [x.node, None], false, || Saved::RootNorm { at, x: kept, reciprocal_root }))
    }

    fn root_norm_args(&self, x: &Tensor) -> rms_norm::Args {
        let epsilon = self.encoder.config.layer_norm_epsilon;
        rms_norm::Args { rows: x.rows as u32, hidden: x.width as u32, epsilon }
    }

    /// block + residual, written over the block, and the norm of it.
    fn residual_root_norm(&mut self, at: NormAt, block: Value, residual: Value) -> Result<(Value, Value)> {
        let norm = self.encoder.norm(at);
        let sum = block.tensor;
        let y = self.device().activation(sum.rows, sum.width)?;
        let reciprocal_root = self.device().wide(sum.rows, 1)?;
        let bindings =
            [sum.bound(), residual.tensor.bound(), norm.gamma.all(), y.bound(), reciprocal_root.bound()];
        self.device().launch(&rms_norm::RESIDUAL_FORWARD, &self.root_norm_args(&sum), &bindings)?;
        let sum = self.record(sum, [block.node, residual.node], false, || Saved::Sum);
        let x = sum.tensor.clone();
        let y = self.record(y, [sum.node, None], false, || Saved::RootNorm { at, x, reciprocal_root });
        Ok((sum, y))
    }

    /// block + residual, written over the block.
    fn sum(&mut self, block: Value, residual: Value) -> Result<Value> {
        self.device().add(&residual.tensor, &block.tensor)?;
        Ok(self.record(block.tensor, [block.node, residual.node], false, || Saved::Sum))
    }

    /// Norms of query and key heads, in models that have them.
    fn head_norm(&mut self, layer: usize, qkv: Value) -> Result<Value> {
        let Some([query, key]) = &self.encoder.layers[layer].head_norms else { return Ok(qkv) };
        let (x, node, args) = (qkv.tensor, qkv.node, self.head_norm_args());
        let y = self.device().activation(x.rows, x.width)?;
        let reciprocal_root = self.device().wide(x.rows, (args.heads + args.kv_heads) as usize)?;
        let bindings = [x.bound(), query.all(), key.all(), y.bound(), reciprocal_root.bound()];
        self.device().launch(&head_norm::FORWARD, &args, &bindings)?;
        Ok(self.record(y, [node, None], false, || Saved::HeadNorm { layer, x, reciprocal_root }))
    }

    fn head_norm_args(&self) -> head_norm::Args {
        let config = &self.encoder.config;
        head_norm::Args {
            tokens: self.batch.tokens as u32,
            heads: config.heads as u32,
            kv_heads: config.kv_heads as u32,
            head_dim: config.head_dim as u32,
            epsilon: config.layer_norm_epsilon,
        }
    }

    /// Rotates query and key heads in place: no rule but that of the attention needs them, and it needs them rotated.
    fn rotate(&mut self, qkv: Value) -> Result<Value> {
        self.rotate_in_place(&qkv.tensor, false)?;
        Ok(self.record(qkv.tensor, [qkv.node, None], false, || Saved::Rotation))
    }

    fn rotate_in_place(&self, qkv: &Tensor, inverse: bool) -> Result<()> {
        let (config, Frame::Decoder { angles, .. }) = (&self.encoder.config, &self.encoder.frame) else {
            unreachable!("decoders are loaded with their angles")
        };
        let args = rope::Args {
            tokens: self.batch.tokens as u32,
            heads: (config.heads + config.kv_heads) as u32,
            head_dim: config.head_dim as u32,
            stride: qkv.width as u32,
            inverse: u32::from(inverse),
        };
        let bindings = [self.batch.position_ids.all(), angles.all(), qkv.bound()];
        self.device().launch(&rope::APPLY, &args, &bindings)
    }

    /// silu(gate)·up
    fn gate(&mut self, wide: Value) -> Result<Value> {
        let (x, node) = (wide.tensor, wide.node);
        let y = self.device().activation(x.rows, x.width / 2)?;
        let args = swiglu::Args { rows: y.rows as u32, width: y.width as u32 };
        self.device().launch(&swiglu::FORWARD, &args, &[x.bound(), y.bound()])?;
        Ok(self.record(y, [node, None], false, || Saved::Gate { x }))
    }
}

impl Backward<'_> {
    pub(super) fn root_norm(&self, at: NormAt, dy: &Tensor, saved: [&Tensor; 2]) -> Result<Tensor> {
        let [x, reciprocal_root] = saved;
        let dx = self.device().activation(dy.rows, dy.width)?;
        let gamma = self.encoder.norm(at).gamma.all();
        let bindings = [dy.bound(), x.bound(), gamma, reciprocal_root.bound(), dx.bound()];
        self.device().launch(&rms_norm::BACKWARD, &self.pass().root_norm_args(x), &bindings)?;
        Ok(dx)
    }

    /// Written over dy, which comes from the rotation alone.
    pub(super) fn head_norm(&self, layer: usize, dy: Tensor, saved: [&Tensor; 2]) -> Result<Tensor> {
        let [x, reciprocal_root] = saved;
        let norms = self.encoder.layers[layer].head_norms.as_ref();
        let [query, key] = norms.expect("a record of them is made only where they are");
        let bindings = [dy.bound(), x.bound(), query.all(), key.all(), reciprocal_root.bound()];
        self.device().launch(&head_norm::BACKWARD, &self.pass().head_norm_args(), &bindings)?;
        Ok(dy)
    }

    /// Written over dy, which comes from the attention alone.
    pub(super) fn rotation(&self, dy: Tensor) -> Result<Tensor> {
        self.pass().rotate_in_place(&dy, true)?;
        Ok(dy)
    }

    pub(super) fn gate(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let dx = self.device().activation(x.rows, x.width)?;
        let args = swiglu::Args { rows: dy.rows as u32, width: dy.width as u32 };
        self.device().launch(&swiglu::BACKWARD, &args, &[dy.bound(), x.bound(), dx.bound()])?;
        Ok(dx)
    }
}
