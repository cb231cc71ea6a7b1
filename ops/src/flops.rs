//! How much arithmetic a pass is, for saying what share of a device's rate was reached.
//!
//! ```text
//! linear layers   2·in·out a token
//! attention       4·keys·heads·head_dim a token and layer: scores and their product with v
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
        let causal = config.decoder.as_ref().is_some_and(|decoder| decoder.is_causal);
        let (mut tokens, mut pairs) = (0.0, 0.0);
        for length in lengths {
            tokens += length as f64;
            pairs += if causal { length * (length + 1) / 2 } else { length * length } as f64;
        }
        let layers = config.layers as f64;
        let parameters: usize =
            config.roles().iter().map(|role| role.widths(config).iter().product::<usize>()).sum();
        Work {
            linear: 2.0 * parameters as f64 * layers * tokens,
            attention: 4.0 * (config.heads * config.head_dim) as f64 * layers * pairs,
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
        let config = ModelConfig::parse(crate::shapes::shape("bge-base").unwrap()).unwrap();
        let work = Work::of(&config, [512, 512].into_iter());
        // 12 layers of 4·768² + 2·768·3072 weights.
        assert_eq!(work.linear, 2.0 * 84_934_656.0 * 1024.0);
        assert_eq!(work.attention, 4.0 * 768.0 * 12.0 * 2.0 * 512.0 * 512.0);
        assert_eq!(work.adapter_training(2) - work.adapter_training(0), 2.0 * work.embedding());
    }
}
