//! PEFT's two files: adapter_config.json and adapter_model.safetensors.
//!
//! Keys are `base_model.model.<module path>.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank]; the second
//! factor is stored transposed here and turned round at this edge.

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::config::{LoraConfig, Targets};
use crate::model::weights::{stored, to_f32};
use crate::{Error, ModelConfig, Result, Role};

const FILE: &str = "adapter_config.json";

/// The base an adapter belongs to, for adapter_config.json.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseIdentity {
    /// Hub id or path; what PEFT loads.
    pub name_or_path: String,
    pub revision: Option<String>,
}

/// Factors of one module: A [rank, in] and Bᵀ [rank, out], row-major.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Factors {
    pub(crate) a: Vec<f32>,
    pub(crate) b_transposed: Vec<f32>,
}

/// Text of adapter_config.json. PEFT's keys alone: it warns of others on each load.
pub(crate) fn config_json(config: &LoraConfig, model: &ModelConfig, base: &BaseIdentity) -> String {
    // PEFT refuses a list that matches nothing, and matches by suffix: roles say it shortest.
    let targets: Vec<String> = match &config.targets {
        Targets::Names(names) => names.clone(),
        Targets::AllLinear => model.roles().iter().map(|role| model.role_path(*role).to_owned()).collect(),
    };
    let value = json!({
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": base.name_or_path,
        "revision": base.revision,
        "r": config.rank,
        "lora_alpha": decimal(config.alpha),
        "lora_dropout": decimal(config.dropout),
        "use_rslora": config.rank_stabilized,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": false,
        "init_lora_weights": true,
        "auto_mapping": null,
    });
    format!("{value:#}\n")
}

/// The shortest number that names this f32: 16 and 0.05, where its f64 would be 16.0 and 0.05000000074505806.
fn decimal(value: f32) -> Value {
    serde_json::from_str(&value.to_string()).expect("alpha and dropout were checked to be finite")
}

/// Reads adapter_config.json.
///
/// # Errors
/// Malformed text, or a variant of LoRA that is not supported.
pub(crate) fn parse_config(text: &str) -> Result<LoraConfig> {
    let malformed = |problem: String| Error::Malformed { file: FILE, problem };
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    for (setting, allowed) in UNSUPPORTED {
        let plain = |value: &Value| match value {
            Value::Null => true,
            Value::Object(entries) => entries.is_empty(),
            Value::Array(entries) => entries.is_empty(),
            other => allowed.is_some_and(|allowed| other.to_string().trim_matches('"') == allowed),
        };
        if let Some(value) = object.get(setting).filter(|value| !plain(value)) {
            let found = value.to_string();
            return Err(Error::AdapterSetting { setting, found, expected: allowed.unwrap_or("none") });
        }
    }
    let number = |key: &str, default: f64| match object.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| malformed(format!("{key} is {value}"))),
    };
    let targets = match object.get("target_modules") {
        Some(Value::String(name)) if name == "all-linear" => Targets::AllLinear,
        Some(Value::Array(names)) => {
            Targets::Names(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        }
        other => return Err(malformed(format!("target_modules is {other:?}, a list of names is needed"))),
    };
    Ok(LoraConfig {
        rank: number("r", 8.0)? as usize,
        alpha: number("lora_alpha", 8.0)? as f32,
        dropout: number("lora_dropout", 0.0)? as f32,
        rank_stabilized: object.get("use_rslora") == Some(&Value::Bool(true)),
        targets,
    })
}

/// Settings that change the arithmetic, and the one value that does not.
const UNSUPPORTED: [(&str, Option<&str>); 10] = [
    ("peft_type", Some("LORA")),
    ("bias", Some("none")),
    ("use_dora", Some("false")),
    ("fan_in_fan_out", Some("false")),
    ("modules_to_save", None),
    ("rank_pattern", None),
    ("alpha_pattern", None),
    ("layers_to_transform", None),
    ("exclude_modules", None),
    ("lora_bias", Some("false")),
];

/// Reads adapter_model.safetensors: factors by module, for exactly the modules given.
///
/// # Errors
/// Not safetensors; a tensor is missing, of the wrong shape, or belongs to no module.
pub(crate) fn parse_factors(
    bytes: &[u8],
    rank: usize,
    modules: &[(usize, Role)],
    model: &ModelConfig,
) -> Result<Vec<Factors>> {
    let file = SafeTensors::deserialize(bytes).map_err(Error::WeightFile)?;
    let mut by_name: BTreeMap<String, &str> = BTreeMap::new();
    let names = file.names();
    for name in &names {
        by_name.insert(bare_name(name).to_owned(), name);
    }
    let mut take = |name: String, shape: [usize; 2]| -> Result<Vec<f32>> {
        let stored_name = by_name.remove(&name).ok_or_else(|| Error::MissingTensor { name: name.clone() })?;
        let view = file.tensor(stored_name).map_err(Error::WeightFile)?;
        if view.shape() != shape {
            return Err(Error::TensorShape { name, found: view.shape().to_vec(), expected: shape.to_vec() });
        }
        Ok(to_f32(view.data(), stored(&name, view.dtype())?))
    };
    let mut all = Vec::with_capacity(modules.len());
    for &(layer, role) in modules {
        let (path, [inputs, outputs]) = (model.module_path(layer, role), role.widths(model));
        let a = take(format!("{path}.lora_A.weight"), [rank, inputs])?;
        let b = take(format!("{path}.lora_B.weight"), [outputs, rank])?;
        all.push(Factors { a, b_transposed: transpose(&b, outputs, rank) });
    }
    match by_name.into_keys().next() {
        Some(name) => Err(Error::AdapterTensor { name }),
        None => Ok(all),
    }
}

/// Without PEFT's wrapper, the model's own prefix and an adapter's name.
fn bare_name(name: &str) -> &str {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    ["bert.", "roberta.", "model."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Bytes of adapter_model.safetensors.
pub(crate) fn factors_file(
    model: &ModelConfig,
    rank: usize,
    modules: &[(usize, Role)],
    factors: &[Factors],
) -> Vec<u8> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (&(layer, role), factors) in modules.iter().zip(factors) {
        let path = model.module_path(layer, role);
        let (inputs, outputs) = (factors.a.len() / rank, factors.b_transposed.len() / rank);
        let b = transpose(&factors.b_transposed, rank, outputs);
        tensors.insert(
            format!("base_model.model.{path}.lora_A.weight"),
            (vec![rank, inputs], to_bytes(&factors.a)),
        );
        tensors.insert(format!("base_model.model.{path}.lora_B.weight"), (vec![outputs, rank], to_bytes(&b)));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (name, view.expect("shape and bytes were made together"))
    });
    safetensors::serialize(views, Some(metadata)).expect("names are plain and sizes are those of the tensors")
}

/// `matrix` [rows, columns] to [columns, rows].
pub(crate) fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut turned = vec![0.0; matrix.len()];
    for row in 0..rows {
        for column in 0..columns {
            turned[column * rows + row] = matrix[row * columns + column];
        }
    }
    turned
}

pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        let text = r#"{"model_type":"bert","hidden_size":4,"num_hidden_layers":1,"num_attention_heads":2,
            "intermediate_size":6,"vocab_size":30}"#;
        ModelConfig::parse(text).unwrap()
    }

    fn config() -> LoraConfig {
        let targets = Targets::Names(vec!["query".to_owned(), "intermediate.dense".to_owned()]);
        LoraConfig { rank: 2, alpha: 4.0, dropout: 0.1, rank_stabilized: true, targets }
    }

    #[test]
    fn files_are_read_back_as_written() {
        let (model, config) = (model(), config());
        let modules = config.resolve(&model).unwrap();
        let factors: Vec<Factors> = modules
            .iter()
            .map(|(_, role)| {
                let [inputs, outputs] = role.widths(&model);
                let a = (0..2 * inputs).map(|i| i as f32).collect();
                Factors { a, b_transposed: (0..2 * outputs).map(|i| -(i as f32)).collect() }
            })
            .collect();
        let bytes = factors_file(&model, 2, &modules, &factors);
        assert_eq!(parse_factors(&bytes, 2, &modules, &model).unwrap(), factors);
        let fewer = parse_factors(&bytes, 2, &modules[..1], &model);
        assert!(matches!(fewer, Err(Error::AdapterTensor { .. })));
        assert!(matches!(parse_factors(&bytes, 3, &modules, &model), Err(Error::TensorShape { .. })));
        let base = BaseIdentity { name_or_path: "org/model".to_owned(), revision: Some("main".to_owned()) };
        assert_eq!(parse_config(&config_json(&config, &model, &base)).unwrap(), config);
    }

    #[test]
    fn the_configuration_holds_what_peft_knows_in_short_numbers() {
        let model = model();
        let config = LoraConfig { alpha: 16.0, dropout: 0.05, ..config() };
        let base = BaseIdentity { name_or_path: "org/model".to_owned(), revision: None };
        let text = config_json(&config, &model, &base);
        assert!(text.contains("\"lora_alpha\": 16,") && text.contains("\"lora_dropout\": 0.05,"), "{text}");
        assert!(!text.contains("motley"), "{text}");
        let half = LoraConfig { alpha: 0.5, ..config };
        assert_eq!(parse_config(&config_json(&half, &model, &base)).unwrap(), half);
    }

    #[test]
    fn variants_that_compute_something_else_are_refused() {
        for (extra, setting) in [
            ("\"use_dora\":true", "use_dora"),
            ("\"bias\":\"all\"", "bias"),
            ("\"rank_pattern\":{\"query\":4}", "rank_pattern"),
            ("\"modules_to_save\":[\"pooler\"]", "modules_to_save"),
            ("\"peft_type\":\"IA3\"", "peft_type"),
        ] {
            let text = format!("{{\"r\":4,\"target_modules\":[\"query\"],{extra}}}");
            let error = parse_config(&text).unwrap_err().to_string();
            assert!(error.contains(setting), "{error}");
        }
        assert!(parse_config("{\"r\":4}").is_err());
    }
}
