//! What a forward pass leaves behind for the way back: plain records with the tensors they need, in order.
//!
//! ```text
//! node     a value that the loss depends on through something trained; its gradient lives from its last consumer's
//!          record (met first on the way back) to its producer's
//! record   inputs → output, and what the gradient rule needs
//! ```
//!
//! Backward takes records from the end, so every saved tensor is dropped as soon as its rule has run.

use crate::Result;
use crate::device::{Device, Tensor};

/// Index of a value that needs a gradient.
pub(crate) type Node = usize;

/// A value of a forward pass. Without a node nothing trained stands before it.
#[derive(Clone)]
pub(crate) struct Value {
    pub(crate) tensor: Tensor,
    pub(crate) node: Option<Node>,
}

/// Which norm of [tokens, hidden].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormAt {
    /// Behind the embeddings in BERT, behind the last layer in decoders.
    Frame,
    Attention(usize),
    Output(usize),
}

/// Which linear layer (query, key and value are one, and so are gate and up).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinearAt {
    Qkv(usize),
    AttentionOutput(usize),
    Intermediate(usize),
    Output(usize),
}

/// What a gradient rule needs.
pub(crate) enum Saved {
    /// `sum` is what was normalised.
    LayerNorm {
        at: NormAt,
        sum: Tensor,
        mean: Tensor,
        reciprocal_deviation: Tensor,
    },
    /// `x` where an adapter needs it; `hidden` x·Aᵀ for each adapted part.
    Linear {
        at: LinearAt,
        x: Option<Tensor>,
        hidden: Vec<Tensor>,
    },
    RootNorm {
        at: NormAt,
        x: Tensor,
        reciprocal_root: Tensor,
    },
    HeadNorm {
        layer: usize,
        x: Tensor,
        reciprocal_root: Tensor,
    },
    Rotation,
    Activation {
        x: Tensor,
    },
    Gate {
        x: Tensor,
    },
    /// Both inputs, added.
    Sum,
    Attention {
        layer: usize,
        qkv: Tensor,
        out: Tensor,
        log_sum_exp: Tensor,
    },
    Dropout {
        site: u32,
    },
    Pool {
        x: Tensor,
    },
    Normalize {
        y: Tensor,
        length: Tensor,
    },
    /// A layer to be run again from its input.
    Layer {
        layer: usize,
        x: Value,
    },
}

pub(crate) struct Record {
    pub(crate) inputs: [Option<Node>; 2],
    pub(crate) output: Node,
    pub(crate) saved: Saved,
}

/// Records in the order of computation.
#[derive(Default)]
pub(crate) struct Tape {
    records: Vec<Record>,
    nodes: usize,
}

impl Tape {
    /// A node that no record produces: the input of a segment.
    pub(crate) fn input(&mut self) -> Node {
        self.nodes += 1;
        self.nodes - 1
    }

    pub(crate) fn push(&mut self, inputs: [Option<Node>; 2], saved: Saved) -> Node {
        let output = self.input();
        self.records.push(Record { inputs, output, saved });
        output
    }

    pub(crate) fn pop(&mut self) -> Option<Record> {
        self.records.pop()
    }

    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }
}

/// Gradients of nodes on the way back.
pub(crate) struct Gradients {
    of: Vec<Option<Tensor>>,
}

impl Gradients {
    pub(crate) fn new(nodes: usize) -> Self {
        Gradients { of: vec![None; nodes] }
    }

    pub(crate) fn take(&mut self, node: Node) -> Option<Tensor> {
        self.of[node].take()
    }

    /// Takes the gradient if adding to it in place disturbs nobody.
    pub(crate) fn take_unshared(&mut self, node: Node) -> Option<Tensor> {
        if self.of[node].as_ref().is_some_and(Tensor::is_unique) { self.of[node].take() } else { None }
    }

    /// Adds `gradient` to what has come for `node` so far.
    pub(crate) fn add(&mut self, device: &Device, node: Node, gradient: Tensor) -> Result<()> {
        let sum = match self.of[node].take() {
            None => gradient,
            Some(before) if before.is_unique() => {
                device.add(&gradient, &before)?;
                before
            }
            Some(before) => {
                let sum = device.zero_activation(before.rows, before.width)?;
                device.add(&before, &sum)?;
                device.add(&gradient, &sum)?;
                sum
            }
        };
        self.of[node] = Some(sum);
        Ok(())
    }
}
