//! What a low-rank adapter is attached to and how: rank, scale, dropout, targets.

use crate::{Error, ModelConfig, Result, Role};

/// Hyper-parameters of a low-rank adapter (Hu et al. 2021), with PEFT's meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f32,
    /// Probability of dropping an input of the adapter while training, 0 ≤ p < 1.
    pub dropout: f32,
    /// Scale alpha/√rank (rsLoRA, Kalajdzievski 2023) instead of alpha/rank.
    pub rank_stabilized: bool,
    pub targets: Targets,
}

/// Which linear layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    AllLinear,
    /// PEFT's rule: the module's path is the name, or ends in a dot and the name.
    Names(Vec<String>),
}

/// Sites of random draws are counted in strides of this many a layer; [`Role`]s come first.
pub(crate) const SITES_A_LAYER: u32 = 16;

impl LoraConfig {
    /// Reads PEFT's adapter_config.json.
    ///
    /// # Errors
    /// Malformed text, or a variant of LoRA that is not supported.
    pub fn from_peft(config_json: &str) -> Result<Self> {
        super::peft::parse_config(config_json)
    }

    /// What the product of the factors is multiplied with.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The linear layers meant, in order of layer and role.
    ///
    /// # Errors
    /// A value out of range, or a name that matches nothing.
    pub fn resolve(&self, model: &ModelConfig) -> Result<Vec<(usize, Role)>> {
        self.check()?;
        let all: Vec<(usize, Role)> = (0..model.layers)
            .flat_map(|layer| model.roles().iter().map(move |role| (layer, *role)))
            .collect();
        let Targets::Names(names) = &self.targets else { return Ok(all) };
        let matches = |(layer, role): (usize, Role), name: &str| {
            let path = model.module_path(layer, role);
            path == name || path.ends_with(&format!(".{name}"))
        };
        for name in names {
            if !all.iter().any(|module| matches(*module, name)) {
                let candidates: Vec<&str> = model.roles().iter().map(|role| model.role_path(*role)).collect();
                return Err(Error::UnknownTarget { target: name.clone(), candidates: candidates.join(", ") });
            }
        }
        if names.is_empty() {
            return Err(Error::AdapterSetting {
                setting: "targets",
                found: "an empty list".to_owned(),
                expected: "all-linear or names",
            });
        }
        Ok(all.into_iter().filter(|module| names.iter().any(|name| matches(*module, name))).collect())
    }

    fn check(&self) -> Result<()> {
        let wrong = |setting, found: f64, expected| Err(Error::Setting { setting, found, expected });
        if !(1..=RANK_MAX).contains(&self.rank) {
            return wrong("adapter rank", self.rank as f64, "1 to 1024");
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return wrong("adapter alpha", f64::from(self.alpha), "a positive number");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong("adapter dropout", f64::from(self.dropout), "0 to below 1");
        }
        Ok(())
    }
}

/// Beyond this a low rank is none: it is the width of a large encoder.
const RANK_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        let text = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":2,"num_attention_heads":2,
            "intermediate_size":16,"vocab_size":30}"#;
        ModelConfig::parse(text).unwrap()
    }

    fn config(names: &[&str]) -> LoraConfig {
        let targets = Targets::Names(names.iter().map(|name| (*name).to_owned()).collect());
        LoraConfig { rank: 4, alpha: 8.0, dropout: 0.0, rank_stabilized: false, targets }
    }

    #[test]
    fn names_match_as_in_peft() {
        let roles = |names: &[&str]| -> Vec<Role> {
            let modules = config(names).resolve(&model()).unwrap();
            modules.into_iter().filter(|(layer, _)| *layer == 1).map(|(_, role)| role).collect()
        };
        assert_eq!(roles(&["query", "value"]), [Role::Query, Role::Value]);
        assert_eq!(roles(&["dense"]), [Role::AttentionOutput, Role::Intermediate, Role::Output]);
        assert_eq!(roles(&["output.dense"]), [Role::AttentionOutput, Role::Output]);
        assert_eq!(roles(&["encoder.layer.1.attention.self.key"]), [Role::Key]);
        let all = LoraConfig { targets: Targets::AllLinear, ..config(&[]) };
        assert_eq!(all.resolve(&model()).unwrap().len(), 12);
    }

    #[test]
    fn a_target_that_matches_nothing_names_the_candidates() {
        let error = config(&["query", "q_proj"]).resolve(&model()).unwrap_err().to_string();
        assert!(error.contains("q_proj") && error.contains("attention.self.query"), "{error}");
        assert!(config(&[]).resolve(&model()).is_err());
        assert!(LoraConfig { rank: 0, ..config(&["query"]) }.resolve(&model()).is_err());
        assert!(LoraConfig { dropout: 1.0, ..config(&["query"]) }.resolve(&model()).is_err());
    }

    #[test]
    fn scale_is_that_of_the_paper_or_of_rslora() {
        assert_eq!(config(&["query"]).scale(), 2.0);
        assert_eq!(LoraConfig { rank_stabilized: true, ..config(&["query"]) }.scale(), 4.0);
    }
}
