//! `attention` on texts of thousands of tokens: the specification would take hours there, so single queries and keys
//! are taken out, each computed as mod.rs of the kernel says, from the whole text. The backward gets what the device's
//! own forward gave.

use std::iter::zip;

use motley_kernels::Real;
use motley_kernels::attention::{ALONG, Args, BACKWARD, FORWARD};

use super::attention::{Shape, rows};
use super::bounded::{BF16, Bounded, with_rounded_exp};
use super::device::{Data, Device};
use super::random::Random;

/// Queries and keys that are looked at.
const SAMPLES: usize = 8;

pub fn cases(device: &mut Device<'_>) {
    for causal in [0, 1] {
        case(device, &Shape::new(&[0, 8192, 8200], [2, 1, 64], causal, 0.0), 70);
        case(device, &Shape::new(&[0, 5000], [1, 1, 24], causal, 0.0), 71);
    }
}

/// One text of a packed batch, with what was computed for it.
struct Text {
    args: Args,
    start: usize,
    end: usize,
    x: Vec<f32>,
    dout: Vec<f32>,
    out: Vec<f32>,
    along: Vec<f32>,
    log_sum_exp: Vec<f32>,
}

impl Text {
    fn dim(&self) -> usize {
        self.args.head_dim as usize
    }

    fn row<'a>(&self, values: &'a [f32], token: usize, head: usize) -> &'a [f32] {
        &values[(token * self.args.heads as usize + head) * self.dim()..][..self.dim()]
    }

    fn part(&self, first: u32, token: usize, head: usize) -> &[f32] {
        &self.x[token * self.args.stride as usize + first as usize + head * self.dim()..][..self.dim()]
    }

    fn query(&self, token: usize, head: usize) -> &[f32] {
        self.part(self.args.query, token, head)
    }

    fn key(&self, token: usize, head: usize) -> &[f32] {
        self.part(self.args.key, token, self.kv_head(head))
    }

    fn value(&self, token: usize, head: usize) -> &[f32] {
        self.part(self.args.value, token, self.kv_head(head))
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.args.heads / self.args.kv_heads) as usize
    }

    /// Keys that a query sees.
    fn seen(&self, query: usize) -> std::ops::Range<usize> {
        self.start..if self.args.causal == 1 { query + 1 } else { self.end }
    }

    fn score(&self, query: usize, key: usize, head: usize) -> Bounded {
        Bounded::from_f64(f64::from(self.args.scale)) * dot(self.query(query, head), self.key(key, head))
    }

    /// log Σ exp, and the output.
    fn forward(&self, query: usize, head: usize) -> (Bounded, Vec<Bounded>) {
        use num_traits::Float;
        let scores: Vec<Bounded> = self.seen(query).map(|key| self.score(query, key, head)).collect();
        let largest = scores.iter().copied().fold(Bounded::neg_infinity(), Bounded::max);
        let total = scores.iter().map(|score| (*score - largest).exp()).sum::<Bounded>();
        let log_sum = largest + total.ln();
        let mut out = zeros(self.dim());
        for (key, score) in zip(self.seen(query), scores) {
            add(&mut out, (score - log_sum).exp(), self.value(key, head));
        }
        (log_sum, out)
    }

    /// p and ds of one query and one key that it sees.
    fn slope(&self, query: usize, key: usize, head: usize) -> (Bounded, Bounded) {
        use num_traits::Float;
        let of = |values: &[f32]| Bounded::exact(values[query * self.args.heads as usize + head]);
        let p = (self.score(query, key, head) - of(&self.log_sum_exp)).exp();
        let dp = dot(self.row(&self.dout, query, head), self.value(key, head));
        let ds = p * (dp - of(&self.along)) * Bounded::from_f64(f64::from(self.args.scale));
        (p, ds)
    }

    fn query_gradient(&self, query: usize, head: usize) -> Vec<Bounded> {
        let mut dq = zeros(self.dim());
        for key in self.seen(query) {
            add(&mut dq, self.slope(query, key, head).1, self.key(key, head));
        }
        dq
    }

    /// dk and dv.
    fn key_gradients(&self, key: usize, kv_head: usize) -> [Vec<Bounded>; 2] {
        let (mut dk, mut dv) = (zeros(self.dim()), zeros(self.dim()));
        for head in (0..self.args.heads as usize).filter(|head| self.kv_head(*head) == kv_head) {
            for query in (self.start..self.end).filter(|query| self.seen(*query).contains(&key)) {
                let (p, ds) = self.slope(query, key, head);
                add(&mut dk, ds, self.query(query, head));
                add(&mut dv, p, self.row(&self.dout, query, head));
            }
        }
        [dk, dv]
    }
}

fn zeros(count: usize) -> Vec<Bounded> {
    vec![Bounded::exact(0.0); count]
}

fn dot(a: &[f32], b: &[f32]) -> Bounded {
    zip(a, b).map(|(a, b)| Bounded::exact(*a) * Bounded::exact(*b)).sum()
}

fn add(sum: &mut [Bounded], factor: Bounded, values: &[f32]) {
    zip(sum, values).for_each(|(sum, value)| *sum = *sum + factor * Bounded::exact(*value));
}

fn case(device: &mut Device<'_>, shape: &Shape, seed: u64) {
    device.case = format!("single rows of {shape:?}, seed {seed}");
    let (args, mut random) = (shape.args(), Random::new(seed));
    let (tokens, heads, dim) = (args.tokens as usize, args.heads as usize, args.head_dim as usize);
    let x = device.rounded(random.numbers(tokens * args.stride as usize));
    let dout = device.rounded(random.numbers(tokens * heads * dim));
    let texts = || [Data::words(&shape.lengths), Data::words(&rows(args.tokens))];
    let outputs = [Data::Output(tokens * heads * dim), Data::Output(tokens * heads)];
    let data = [Data::of(&x)].into_iter().chain(texts()).chain(outputs).collect();
    let mut got = device.run(&FORWARD, &args, data);
    let log_sum_exp = got.remove(1);
    let out = got.remove(0);
    let data = vec![Data::of(&dout), Data::of(&out), Data::Output(tokens * heads)];
    let along = device.run(&ALONG, &args, data).remove(0);
    let read = [&dout, &x, &along, &log_sum_exp].map(|values| Data::of(values));
    let data = read.into_iter().chain(texts()).chain([Data::Output(x.len())]).collect();
    let dx = device.run(&BACKWARD, &args, data).remove(0);

    let end = shape.lengths[1] as usize;
    let text = Text { args, start: 0, end, x, dout, out, along, log_sum_exp };
    let rounding = if device.is_bf16() { BF16 } else { 0.0 };
    for sample in 0..SAMPLES {
        // The first, the last, and others.
        let token = [0, end - 1, random.below(end)][sample.min(2)];
        let head = random.below(heads);
        let sum = dot(text.row(&text.dout, token, head), text.row(&text.out, token, head));
        device.compare(ALONG.name, &text.along[token * heads + head..][..1], &[sum]);
        let (log_sum, _) = text.forward(token, head);
        device.compare(FORWARD.name, &text.log_sum_exp[token * heads + head..][..1], &[log_sum]);
        let (_, wanted) = with_rounded_exp(rounding, || text.forward(token, head));
        device.compare_activations(FORWARD.name, text.row(&text.out, token, head), &wanted);
        let place = |first: u32, head: usize| token * args.stride as usize + first as usize + head * dim;
        let wanted = with_rounded_exp(2.0 * rounding, || text.query_gradient(token, head));
        device.compare_activations(BACKWARD.name, &dx[place(args.query, head)..][..dim], &wanted);
        let kv_head = text.kv_head(head);
        let [dk, dv] = with_rounded_exp(2.0 * rounding, || text.key_gradients(token, kv_head));
        device.compare_activations(BACKWARD.name, &dx[place(args.key, kv_head)..][..dim], &dk);
        device.compare_activations(BACKWARD.name, &dx[place(args.value, kv_head)..][..dim], &dv);
    }
}
