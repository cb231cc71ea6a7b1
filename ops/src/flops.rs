//! How much arithmetic a pass is, for saying what share of a device's rate was reached.
//!
//! ```text
//! linear layers   2·in·out a token
//! attention       4·keys·heads·head_dim a token and layer: scores and their product with v; half of it if causal
//!
//! embedding                       linear + attention
//! training an adapter             2·linear + 3·attention: forward; dx alone, since the weights are frozen; attention's
//!                                 way back is to q, k and v
//! checkpointed layers, chunks     one forward more for each: they run again
//! ```
//!
//! Everything else (norms, activations, pooling, the adapter's own skinny products, the loss) is left out, as it is
//! where other packages state such shares: it counts as time, not as work.

use crate::ModelConfig;

/// Floating-point operations of one forward pass through a model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    pub linear: f64,
    pub attention: f64,
}

impl Work {
    /// Of texts of these lengths.
    pub fn of(config: &ModelConfig, lengths: impl Iterator<Item = usize>) -> Work {
        let (mut tokens, mut pairs) = (0.0, 0.0);
        for length in lengths {
            tokens += length as f64;
            pairs += (length * length) as f64;
        }
        let layers = config.layers as f64;
        let parameters: usize =
            config.roles().iter().map(|role| role.widths(config).iter().product::<usize>()).sum();
        // A causal token sees half of its text.
        let seen = if config.decoder.as_ref().is_some_and(|decoder| decoder.is_causal) { 0.5 } else { 1.0 };
        Work {
            linear: 2.0 * parameters as f64 * layers * tokens,
            attention: 4.0 * (config.heads * config.head_dim) as f64 * layers * pairs * seen,
        }
    }

    pub fn embedding(self) -> f64 {
        self.linear + self.attention
    }

    /// Of a step that trains an adapter. `again` is how often layers run once more for the way back.
    pub fn adapter_training(self, again: u32) -> f64 {
        2.0 * self.linear + 3.0 * self.attention + f64::from(again) * self.embedding()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_that_of_the_formula() {
        let config = |name| ModelConfig::parse(crate::shapes::shape(name).unwrap()).unwrap();
        let decoder = Work::of(&config("mistral-7b"), [10].into_iter());
        assert_eq!(decoder.linear, 2.0 * 6_979_321_856.0 * 10.0);
        assert_eq!(decoder.attention, 2.0 * 4096.0 * 32.0 * 100.0);
        let config = config("bge-base");
        let work = Work::of(&config, [512, 512].into_iter());
        // 12 layers of 4·768² + 2·768·3072 weights.
        assert_eq!(work.linear, 2.0 * 84_934_656.0 * 1024.0);
        assert_eq!(work.attention, 4.0 * 768.0 * 12.0 * 2.0 * 512.0 * 512.0);
        assert_eq!(work.adapter_training(2) - work.adapter_training(0), 2.0 * work.embedding());
    }
}
