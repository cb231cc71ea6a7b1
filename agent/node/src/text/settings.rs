//! Longest text and prompts: what the model's files say, and what a job document says over them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TextError;

/// How texts are prepared for one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSettings {
    /// Tokens a text, special tokens included.
    pub max_length: usize,
    /// Positions that the model has embeddings for.
    pub positions: usize,
    pub lower_case: bool,
    /// Prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt used where none is named.
    pub default_prompt: Option<String>,
    /// The token that ends every text, whether or not tokenizer.json has it in its template.
    pub end_token: Option<String>,
}

/// The texts of a model folder's files that matter here; absent files are `None`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SettingsFiles<'a> {
    pub sentence_bert_config: Option<&'a str>,
    pub tokenizer_config: Option<&'a str>,
    pub config_sentence_transformers: Option<&'a str>,
}

/// What a document says over the model's files.
#[derive(Debug, Clone, Default)]
pub struct SettingsOverrides {
    pub max_length: Option<u32>,
    pub prompts: BTreeMap<String, String>,
}

impl TextSettings {
    /// The longest text is, in this order: the document's, `max_seq_length` of sentence_bert_config.json,
    /// `model_max_length` of tokenizer_config.json (where it is a real length), the model's last position.
    ///
    /// # Errors
    /// A file is not JSON.
    pub fn read(
        files: SettingsFiles<'_>,
        overrides: &SettingsOverrides,
        positions: usize,
    ) -> Result<TextSettings, TextError> {
        let sentence = parse("sentence_bert_config.json", files.sentence_bert_config)?;
        let tokenizer = parse("tokenizer_config.json", files.tokenizer_config)?;
        let transformers = parse("config_sentence_transformers.json", files.config_sentence_transformers)?;
        let length =
            |value: &Value, key: &str| value[key].as_u64().and_then(|length| usize::try_from(length).ok());
        let of_model = length(&sentence, "max_seq_length").or_else(|| length(&tokenizer, "model_max_length"));
        let max_length = match overrides.max_length {
            Some(length) => length as usize,
            // "No limit" is written as 10³⁰ by some; the positions are the limit then.
            None => of_model.unwrap_or(positions).min(positions),
        };
        let mut prompts = BTreeMap::new();
        for (name, prompt) in transformers["prompts"].as_object().into_iter().flatten() {
            // Newer folders list `query` and `document` with empty texts; those are no prompts.
            if let Some(prompt) = prompt.as_str() {
                prompts.insert(name.clone(), prompt.to_owned());
            }
        }
        prompts.extend(overrides.prompts.clone());
        Ok(TextSettings {
            max_length,
            positions,
            lower_case: sentence["do_lower_case"].as_bool().unwrap_or(false),
            prompts,
            default_prompt: transformers["default_prompt_name"].as_str().map(str::to_owned),
            end_token: end_token(&tokenizer),
        })
    }

    /// The prompt of that name; without a name the model's default, which is mostly none.
    ///
    /// # Errors
    /// No prompt has that name.
    pub fn prompt(&self, name: Option<&str>) -> Result<&str, TextError> {
        let Some(name) = name.or(self.default_prompt.as_deref()) else {
            return Ok("");
        };
        self.prompts.get(name).map(String::as_str).ok_or_else(|| {
            let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            TextError::UnknownPrompt { name: name.to_owned(), known }
        })
    }
}

/// `eos_token`, where `add_eos_token` asks for it: transformers appends it then over what tokenizer.json says.
fn end_token(tokenizer: &Value) -> Option<String> {
    let token = &tokenizer["eos_token"];
    let token = token.as_str().or_else(|| token["content"].as_str());
    token.filter(|_| tokenizer["add_eos_token"] == Value::Bool(true)).map(str::to_owned)
}

fn parse(file: &'static str, text: Option<&str>) -> Result<Value, TextError> {
    match text {
        None => Ok(Value::Null),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| TextError::Unreadable { file, message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(files: SettingsFiles<'_>, overrides: &SettingsOverrides) -> TextSettings {
        TextSettings::read(files, overrides, 512).unwrap()
    }

    #[test]
    fn longest_text_comes_from_the_nearest_source() {
        let sentence = Some(r#"{"max_seq_length": 256, "do_lower_case": false}"#);
        let tokenizer = Some(r#"{"model_max_length": 384}"#);
        let both = SettingsFiles {
            sentence_bert_config: sentence,
            tokenizer_config: tokenizer,
            ..Default::default()
        };
        let none = SettingsOverrides::default();
        assert_eq!(settings(both, &none).max_length, 256);
        assert_eq!(settings(SettingsFiles { sentence_bert_config: None, ..both }, &none).max_length, 384);
        assert_eq!(settings(SettingsFiles::default(), &none).max_length, 512);
        let endless = Some(r#"{"model_max_length": 1000000000000000019884624838656}"#);
        let endless = SettingsFiles { tokenizer_config: endless, ..Default::default() };
        assert_eq!(settings(endless, &none).max_length, 512);
        let asked = SettingsOverrides { max_length: Some(64), ..Default::default() };
        assert_eq!(settings(both, &asked).max_length, 64);
    }

    #[test]
    fn prompts_of_the_document_stand_over_those_of_the_model() {
        let text =
            r#"{"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}"#;
        let files = SettingsFiles { config_sentence_transformers: Some(text), ..Default::default() };
        let overrides = SettingsOverrides {
            prompts: [("query".to_owned(), "Q: ".to_owned())].into(),
            ..Default::default()
        };
        let got = settings(files, &overrides);
        assert_eq!(got.prompt(Some("query")).unwrap(), "Q: ");
        assert_eq!(got.prompt(None).unwrap(), "passage: ");
        let message = got.prompt(Some("qeury")).unwrap_err().to_string();
        assert!(message.contains("passage, query"), "{message}");
        assert_eq!(
            settings(SettingsFiles::default(), &SettingsOverrides::default()).prompt(None).unwrap(),
            ""
        );
    }

    #[test]
    fn the_end_token_is_read_in_both_ways_of_writing_it() {
        for (text, wanted) in [
            (r#"{"add_eos_token": true, "eos_token": "</s>"}"#, Some("</s>")),
            (r#"{"add_eos_token": true, "eos_token": {"content": "</s>"}}"#, Some("</s>")),
            (r#"{"add_eos_token": false, "eos_token": "</s>"}"#, None),
            (r#"{"eos_token": "</s>"}"#, None),
        ] {
            let files = SettingsFiles { tokenizer_config: Some(text), ..Default::default() };
            let got = settings(files, &SettingsOverrides::default());
            assert_eq!(got.end_token.as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn a_broken_file_is_named() {
        let files = SettingsFiles { tokenizer_config: Some("{"), ..Default::default() };
        let message = TextSettings::read(files, &SettingsOverrides::default(), 512).unwrap_err().to_string();
        assert!(message.starts_with("tokenizer_config.json is not usable"), "{message}");
    }
}
