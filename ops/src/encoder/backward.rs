//! The way back: one gradient rule for each record, from the last to the first. Rules of one family alone stand
//! beside its forward steps.

use motley_backends::{Buffer, Direction, Epilogue, Linear};
use motley_kernels::{attention, dropout, lora, normalize, pool};

use super::forward::lora_args;
use super::{DeviceBatch, Draws, Encoder, Pass};
use crate::Result;
use crate::adapter::Module;
use crate::device::{Device, Tensor};
use crate::tape::{Gradients, LinearAt, Record, Saved, Tape, Value};

/// Where gradients come from and go to.
pub(crate) struct Backward<'a> {
    pub(crate) encoder: &'a Encoder,
    pub(crate) batch: &'a DeviceBatch,
    pub(crate) draws: Draws,
    /// Flat, laid out as the adapter's parameters; added to.
    pub(crate) parameters: &'a Buffer,
}

impl Encoder {
    /// Walks `tape` back from `output`, whose gradient is `upstream` [texts, hidden], and adds the adapter's
    /// gradients to `backward.parameters`.
    pub(crate) fn backward(
        backward: &Backward<'_>,
        tape: Tape,
        output: &Value,
        upstream: Tensor,
    ) -> Result<()> {
        let Some(node) = output.node else { return Ok(()) };
        let mut gradients = Gradients::new(tape.nodes());
        gradients.add(&backward.encoder.device, node, upstream)?;
        backward.walk(tape, &mut gradients)
    }
}

impl Backward<'_> {
    fn walk(&self, mut tape: Tape, gradients: &mut Gradients) -> Result<()> {
        while let Some(record) = tape.pop() {
            if let Some(gradient) = gradients.take(record.output) {
                self.step(record, gradient, gradients)?;
            }
        }
        Ok(())
    }

    pub(super) fn device(&self) -> &Device {
        &self.encoder.device
    }

    /// A pass that only lends its arguments.
    pub(super) fn pass(&self) -> Pass<'_> {
        Pass { encoder: self.encoder, batch: self.batch, draws: Some(self.draws), tape: None }
    }

    fn step(&self, record: Record, gradient: Tensor, gradients: &mut Gradients) -> Result<()> {
        let [first, second] = record.inputs;
        let dx = match record.saved {
            Saved::Linear { at, x, hidden } => {
                return self.linear((at, x, hidden), first, &gradient, gradients);
            }
            Saved::Layer { layer, x } => return self.layer(layer, x, gradient, gradients),
            saved => self.rule(saved, gradient)?,
        };
        // A sum passes its gradient to both sides unchanged.
        for node in [first, second].into_iter().flatten() {
            gradients.add(self.device(), node, dx.clone())?;
        }
        Ok(())
    }

    /// dx of an operation without weights that learn.
    fn rule(&self, saved: Saved, dy: Tensor) -> Result<Tensor> {
        match saved {
            Saved::LayerNorm { at, sum, mean, reciprocal_deviation } => {
                self.layer_norm(at, &dy, [&sum, &mean, &reciprocal_deviation])
            }
            Saved::RootNorm { at, x, reciprocal_root } => self.root_norm(at, &dy, [&x, &reciprocal_root]),
            Saved::HeadNorm { layer, x, reciprocal_root } => {
                self.head_norm(layer, dy, [&x, &reciprocal_root])
            }
            Saved::Rotation => self.rotation(dy),
            Saved::Activation { x } => self.activation(&dy, &x),
            Saved::Gate { x } => self.gate(&dy, &x),
            Saved::Attention { layer, qkv, out, log_sum_exp } => {
                self.attention(layer, &dy, [&qkv, &out, &log_sum_exp])
            }
            Saved::Dropout { site } => self.dropout(&dy, site),
            Saved::Pool { x } => self.pool(&dy, &x),
            Saved::Normalize { y, length } => self.normalize(&dy, &y, &length),
            Saved::Sum => Ok(dy),
            Saved::Linear { .. } | Saved::Layer { .. } => unreachable!("`step` took those"),
        }
    }

    fn attention(&self, layer: usize, dy: &Tensor, saved: [&Tensor; 3]) -> Result<Tensor> {
        let [qkv, out, log_sum_exp] = saved;
        let args = self.pass().attention_args(layer);
        let along = self.device().wide(log_sum_exp.rows, log_sum_exp.width)?;
        self.device().launch(&attention::ALONG, &args, &[dy.bound(), out.bound(), along.bound()])?;
        let dqkv = self.device().activation(qkv.rows, qkv.width)?;
        let bindings = [
            dy.bound(),
            qkv.bound(),
            along.bound(),
            log_sum_exp.bound(),
            self.batch.cumulative_lengths.all(),
            self.batch.rows.all(),
            dqkv.bound(),
        ];
        self.device().launch(&attention::BACKWARD, &args, &bindings)?;
        Ok(dqkv)
    }

    fn pool(&self, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
        let dx = self.device().activation(x.rows, x.width)?;
        let bindings = [dy.bound(), x.bound(), self.batch.cumulative_lengths.all(), dx.bound()];
        self.device().launch(&pool::BACKWARD, &self.pass().pool_args(), &bindings)?;
        Ok(dx)
    }

    fn normalize(&self, dy: &Tensor, y: &Tensor, length: &Tensor) -> Result<Tensor> {
        let dx = self.device().wide(dy.rows, dy.width)?;
        let args = normalize::Args { rows: dy.rows as u32, width: dy.width as u32 };
        let bindings = [dy.bound(), y.bound(), length.bound(), dx.bound()];
        self.device().launch(&normalize::BACKWARD, &args, &bindings)?;
        Ok(dx)
    }

    /// dx = dy·W, added in place to what has come for x; then the adapter's parts.
    fn linear(
        &self,
        (at, x, hidden): (LinearAt, Option<Tensor>, Vec<Tensor>),
        input: Option<usize>,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (weight, _) = self.encoder.linear(at);
        let mut dx = None;
        if let Some(node) = input {
            let before = gradients.take_unshared(node);
            let accumulate = before.is_some();
            let target = before.map_or_else(|| self.device().activation(dy.rows, weight.shape()[1]), Ok)?;
            self.device().backend.linear(&Linear {
                weight,
                direction: Direction::Backward,
                rows: dy.rows,
                input: dy.bound(),
                output: target.bound(),
                epilogue: Epilogue::None,
                accumulate,
            })?;
            dx = Some(target);
        }
        if let Some(x) = x {
            for ((module, column), hidden) in self.encoder.adapted(at).iter().zip(&hidden) {
                self.adapter((module, *column), [&x, hidden, dy], dx.as_ref())?;
            }
        }
        match (input, dx) {
            (Some(node), Some(dx)) => gradients.add(self.device(), node, dx),
            _ => Ok(()),
        }
    }

    /// dBᵀ += s·hᵀ·dy, dh = dy·B, dA += s·dhᵀ·x, dx += s·dh·A.
    fn adapter(&self, place: (&Module, usize), saved: [&Tensor; 3], dx: Option<&Tensor>) -> Result<()> {
        let ((module, column), [x, hidden, dy]) = (place, saved);
        let adapter = self.encoder.adapter.as_ref().expect("modules come from the adapter");
        let (rank, scale, rows) = (adapter.config.rank, adapter.config.scale(), dy.rows);
        let device = self.device();
        let wide = (module.outputs, dy.width, column);
        let b_gradient = module.b_in(self.parameters, rank);
        let args = lora_args(rows, rank, wide, scale);
        device.launch(&lora::OUTER, &args, &[hidden.bound(), dy.bound(), b_gradient])?;
        let dh = device.wide(rows, rank)?;
        let factor = module.b_in(&adapter.parameters, rank);
        device.launch(&lora::DOT, &lora_args(rows, rank, wide, 1.0), &[dy.bound(), factor, dh.bound()])?;
        let args = lora_args(rows, rank, (module.inputs, module.inputs, 0), scale);
        let dropped = self.pass().adapter_input(module, x)?;
        let a_gradient = module.a_in(self.parameters, rank);
        device.launch(&lora::OUTER, &args, &[dh.bound(), dropped.bound(), a_gradient])?;
        let Some(dx) = dx else { return Ok(()) };
        let factor = module.a_in(&adapter.parameters, rank);
        match self.pass().dropout_args(dx, adapter.config.dropout, module.site()) {
            None => device.launch(&lora::EXPAND, &args, &[dh.bound(), factor, dx.bound()]),
            Some(dropout) => {
                let part = device.zero_activation(dx.rows, dx.width)?;
                device.launch(&lora::EXPAND, &args, &[dh.bound(), factor, part.bound()])?;
                let bindings = [part.bound(), self.batch.rows.all(), dx.bound()];
                device.launch(&dropout::APPLY_ADD, &dropout, &bindings)
            }
        }
    }

    /// Runs a layer again, this time with a tape, and walks that back.
    fn layer(&self, layer: usize, x: Value, dy: Tensor, gradients: &mut Gradients) -> Result<()> {
        let mut tape = Tape::default();
        let input = x.node.map(|_| tape.input());
        let mut pass = Pass { tape: Some(tape), ..self.pass() };
        let out = pass.layer(layer, Value { tensor: x.tensor, node: input })?;
        let tape = pass.tape.take().expect("set above");
        let mut inner = Gradients::new(tape.nodes());
        let Some(node) = out.node else { return Ok(()) };
        inner.add(self.device(), node, dy)?;
        self.walk(tape, &mut inner)?;
        match (x.node, input.and_then(|input| inner.take(input))) {
            (Some(node), Some(dx)) => gradients.add(self.device(), node, dx),
            _ => Ok(()),
        }
    }
}
