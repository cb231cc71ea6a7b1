//! The embedding request and its answer, as OpenAI's clients write and read them.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::text::{Encoded, TextTokenizer};
use motley_scheduler_core::document::Truncate;

/// A request whose shape has been checked; sizes and ids have not.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EmbeddingRequest {
    pub(crate) model: String,
    pub(crate) input: Input,
    pub(crate) dimensions: Option<usize>,
    pub(crate) encoding: VectorEncoding,
}

/// The four forms of `input`, a single one as a list of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorEncoding {
    Float,
    /// Little-endian float32, no other framing.
    Base64,
}

/// What a request may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLimits {
    pub(crate) inputs_max: usize,
    pub(crate) tokens_max: usize,
    pub(crate) truncate: Truncate,
}

impl EmbeddingRequest {
    /// Unknown fields are ignored, as OpenAI's server does; `user` is one of them.
    pub(crate) fn parse(body: &[u8]) -> Result<EmbeddingRequest, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::malformed(format!("We could not parse the JSON body of your request: {error}."))
        })?;
        let Value::Object(fields) = value else {
            return Err(ApiError::malformed("The JSON body of your request is not an object."));
        };
        let model = match fields.get("model") {
            Some(Value::String(model)) => model.clone(),
            None | Some(Value::Null) => {
                return Err(ApiError::invalid("model", "you must provide a model parameter"));
            }
            Some(_) => return Err(ApiError::invalid("model", "'$.model' is invalid: it must be a string.")),
        };
        let input = Input::parse(fields.get("input").unwrap_or(&Value::Null))?;
        Ok(EmbeddingRequest { model, input, dimensions: dimensions(&fields)?, encoding: encoding(&fields)? })
    }
}

fn dimensions(fields: &Map<String, Value>) -> Result<Option<usize>, ApiError> {
    let number = match fields.get("dimensions") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value.as_u64().filter(|number| *number > 0),
    };
    let invalid =
        || ApiError::invalid("dimensions", "'$.dimensions' is invalid: it must be a whole number above 0.");
    number.and_then(|number| usize::try_from(number).ok()).map(Some).ok_or_else(invalid)
}

fn encoding(fields: &Map<String, Value>) -> Result<VectorEncoding, ApiError> {
    match fields.get("encoding_format") {
        None | Some(Value::Null) => Ok(VectorEncoding::Float),
        Some(Value::String(name)) if name == "float" => Ok(VectorEncoding::Float),
        Some(Value::String(name)) if name == "base64" => Ok(VectorEncoding::Base64),
        Some(_) => Err(ApiError::invalid(
            "encoding_format",
            "'$.encoding_format' is invalid: it must be \"float\" or \"base64\".",
        )),
    }
}

impl Input {
    fn parse(value: &Value) -> Result<Input, ApiError> {
        const FORMS: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
        let invalid = |why: String| ApiError::invalid("input", format!("'$.input' is invalid: {why}."));
        match value {
            Value::Null => Err(ApiError::invalid("input", "you must provide an input parameter")),
            Value::String(text) => Ok(Input::Texts(vec![text.clone()])),
            Value::Array(items) => match items.first() {
                None => Err(invalid("the list is empty".to_owned())),
                Some(Value::String(_)) => {
                    let text = |item: &Value| item.as_str().map(str::to_owned);
                    let texts: Option<Vec<String>> = items.iter().map(text).collect();
                    texts.map(Input::Texts).ok_or_else(|| invalid(format!("it must be {FORMS}, not mixed")))
                }
                Some(Value::Number(_)) => Ok(Input::Ids(vec![ids(items)?])),
                Some(Value::Array(_)) => {
                    let list = |item: &Value| match item {
                        Value::Array(items) => ids(items),
                        _ => Err(invalid(format!("it must be {FORMS}, not mixed"))),
                    };
                    items.iter().map(list).collect::<Result<_, _>>().map(Input::Ids)
                }
                Some(_) => Err(invalid(format!("it must be {FORMS}"))),
            },
            _ => Err(invalid(format!("it must be {FORMS}"))),
        }
    }

    pub(crate) fn count(&self) -> usize {
        match self {
            Input::Texts(texts) => texts.len(),
            Input::Ids(lists) => lists.len(),
        }
    }
}

fn ids(items: &[Value]) -> Result<Vec<u32>, ApiError> {
    if items.is_empty() {
        return Err(ApiError::invalid("input", "'$.input' is invalid: a list of token ids is empty."));
    }
    let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids: Option<Vec<u32>> = items.iter().map(id).collect();
    let message =
        "'$.input' is invalid: token ids are whole numbers from 0, and not mixed with anything else.";
    ids.ok_or_else(|| ApiError::invalid("input", message))
}

/// The inputs as token ids, checked against the limits. Tokenizing takes a while: `still_asked` is looked at before
/// each text, and nothing is the answer once it is false.
pub(crate) fn tokenize(
    input: &Input,
    tokenizer: &TextTokenizer,
    prompt: &str,
    limits: RequestLimits,
    still_asked: &dyn Fn() -> bool,
) -> Result<Option<Vec<Encoded>>, ApiError> {
    if input.count() > limits.inputs_max {
        let (count, limit) = (input.count(), limits.inputs_max);
        return Err(ApiError::invalid(
            "input",
            format!("'$.input' is invalid: {count} inputs, at most {limit} are allowed."),
        ));
    }
    let mut total = 0;
    let mut check = |encoded: Encoded| {
        if encoded.is_truncated() && limits.truncate == Truncate::Error {
            return Err(too_long(&encoded, tokenizer.max_length()));
        }
        total += encoded.text.ids.len();
        if total > limits.tokens_max {
            let limit = limits.tokens_max;
            let message = format!(
                "The inputs of this request exceed {limit} tokens in sum. Send fewer inputs a request."
            );
            return Err(ApiError::invalid("input", message));
        }
        Ok(encoded)
    };
    match input {
        Input::Texts(texts) => texts
            .iter()
            .take_while(|_| still_asked())
            .map(|text| {
                if text.is_empty() {
                    return Err(ApiError::invalid(
                        "input",
                        "'$.input' is invalid: an input is an empty string.",
                    ));
                }
                let encoded = tokenizer.encode(text, prompt);
                check(encoded.map_err(|error| ApiError::invalid("input", error.to_string()))?)
            })
            .collect::<Result<Vec<_>, _>>(),
        Input::Ids(lists) => {
            lists.iter().map(|ids| check(tokenizer.adopt(ids, prompt).map_err(foreign_id)?)).collect()
        }
    }
    .map(|encoded| (encoded.len() == input.count()).then_some(encoded))
}

fn too_long(encoded: &Encoded, limit: usize) -> ApiError {
    let asked = match encoded.is_counted {
        true => format!("{}", encoded.full_length),
        false => format!("at least {}", encoded.full_length),
    };
    let message = format!(
        "This model's maximum context length is {limit} tokens, however you requested {asked} tokens \
         ({asked} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
    );
    ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid("input", message) }
}

/// Clients that tokenize by themselves often do so with another model's tokenizer: answered, that would be garbage.
fn foreign_id(foreign: crate::text::tokenizer::ForeignId) -> ApiError {
    let message = format!(
        "'$.input' is invalid: token id {} is not below {}, the size of this model's vocabulary, so the ids come \
         from another tokenizer. Send texts instead (LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)).",
        foreign.id, foreign.vocabulary
    );
    ApiError::invalid("input", message)
}

/// How the vectors of an answer are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VectorForm {
    /// Values of one vector as computed.
    pub(crate) hidden: usize,
    pub(crate) dimensions: Option<usize>,
    pub(crate) encoding: VectorEncoding,
}

/// The answer's JSON. Vectors cut to `dimensions` are made unit vectors again.
pub(crate) fn answer(vectors: &[f32], form: VectorForm, model: &str, tokens: usize) -> String {
    let rows = vectors.chunks_exact(form.hidden).enumerate();
    let data = rows.map(|(index, row)| DataRow { object: "embedding", index, embedding: vector(row, form) });
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    let body = AnswerBody { object: "list", data: data.collect(), model, usage };
    serde_json::to_string(&body).expect("texts and numbers are JSON")
}

/// Serialised directly: through a `Value` every float32 would be written with the digits of a float64.
#[derive(Serialize)]
struct AnswerBody<'a> {
    object: &'static str,
    data: Vec<DataRow<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct DataRow<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(Cow<'a, [f32]>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

fn vector(row: &[f32], form: VectorForm) -> Vector<'_> {
    let values = match form.dimensions {
        Some(dimensions) => Cow::Owned(normalized(&row[..dimensions])),
        None => Cow::Borrowed(row),
    };
    match form.encoding {
        VectorEncoding::Float => Vector::Float(values),
        VectorEncoding::Base64 => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    }
}

fn normalized(values: &[f32]) -> Vec<f32> {
    let norm = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12);
    values.iter().map(|value| (f64::from(*value) / norm) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn parse(body: &str) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::parse(body.as_bytes())
    }

    #[test]
    fn all_four_forms_of_input_are_read() {
        let input =
            |input: &str| parse(&format!(r#"{{"model": "m", "input": {input}, "user": "u", "x": 1}}"#));
        let texts = |texts: &[&str]| Input::Texts(texts.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(input(r#""a""#).unwrap().input, texts(&["a"]));
        assert_eq!(input(r#"["a", "b"]"#).unwrap().input, texts(&["a", "b"]));
        assert_eq!(input("[1, 2]").unwrap().input, Input::Ids(vec![vec![1, 2]]));
        assert_eq!(input("[[1], [2, 3]]").unwrap().input, Input::Ids(vec![vec![1], vec![2, 3]]));
        for bad in [
            "null",
            "[]",
            "[[]]",
            "3",
            "true",
            "{}",
            r#"["a", 1]"#,
            r#"[1, "a"]"#,
            "[[1], 2]",
            "[-1]",
            "[1.5]",
            "[null]",
        ] {
            let error = input(bad).unwrap_err();
            assert_eq!((error.status, error.param), (StatusCode::BAD_REQUEST, Some("input")), "{bad}");
        }
    }

    #[test]
    fn options_are_checked() {
        let with = |rest: &str| parse(&format!(r#"{{"model": "m", "input": "a"{rest}}}"#));
        assert_eq!(with("").unwrap().encoding, VectorEncoding::Float);
        assert_eq!(with(r#", "encoding_format": "base64""#).unwrap().encoding, VectorEncoding::Base64);
        assert_eq!(with(r#", "dimensions": null"#).unwrap().dimensions, None);
        assert_eq!(with(r#", "dimensions": 64"#).unwrap().dimensions, Some(64));
        for (rest, param) in [
            (r#", "encoding_format": "int8""#, "encoding_format"),
            (r#", "dimensions": 0"#, "dimensions"),
            (r#", "dimensions": "64""#, "dimensions"),
            (r#", "dimensions": -3"#, "dimensions"),
        ] {
            assert_eq!(with(rest).unwrap_err().param, Some(param), "{rest}");
        }
        assert_eq!(parse(r#"{"input": "a"}"#).unwrap_err().param, Some("model"));
        for bad in ["", "{", "[]", "\"a\""] {
            assert_eq!(parse(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }

    fn answer_of(vectors: &[f32], form: VectorForm) -> Value {
        serde_json::from_str(&answer(vectors, form, "m", 7)).unwrap()
    }

    #[test]
    fn base64_is_little_endian_float32() {
        let form = VectorForm { hidden: 2, dimensions: None, encoding: VectorEncoding::Base64 };
        let body = answer_of(&[1.0, -2.0, 0.5, 0.25], form);
        assert_eq!(body["data"][0]["embedding"], "AACAPwAAAMA=");
        assert_eq!(body["data"][1]["index"], 1);
        assert_eq!(body["usage"]["prompt_tokens"], 7);
    }

    #[test]
    fn floats_are_written_with_the_digits_of_float32() {
        let form = VectorForm { hidden: 2, dimensions: None, encoding: VectorEncoding::Float };
        let text = answer(&[0.1, -0.36], form, "m", 7);
        assert!(text.contains("[0.1,-0.36]"), "{text}");
    }

    #[test]
    fn cut_vectors_have_unit_length_again() {
        let form = VectorForm { hidden: 3, dimensions: Some(2), encoding: VectorEncoding::Float };
        let body = answer_of(&[0.36, 0.48, 0.8], form);
        let values: Vec<f64> =
            body["data"][0]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!((values[0] - 0.6).abs() < 1e-6 && (values[1] - 0.8).abs() < 1e-6, "{values:?}");
    }
}
