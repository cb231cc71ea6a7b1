//! tokenizer.json through the `tokenizers` package.
//!
//! The padding and truncation stored in the file are dropped: texts are packed, never padded, and the longest text is
//! the caller's. Special tokens are those of the file's own template, and the end token that settings ask for.

use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{Encoding, Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use super::{TextError, TextSettings};
use motley_ops::TokenizedText;

/// Turns texts into token ids. Cheap to share behind an `Arc`; every method takes `&self`.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    settings: TextSettings,
    template: Template,
    vocabulary: usize,
    /// Bytes of the longest added token, such as `[MASK]`: these are found before the text is split into words.
    added_bytes_max: usize,
}

/// A text is first read as far as this for each token of `max_length`. Words of natural languages are shorter, with
/// the space behind; where they are not, more is read. The figure decides how much is read in vain, nothing else.
const BYTES_PER_TOKEN: usize = 16;

/// How much more of a text is read when the last piece did not tell whether it is too long.
const GROWTH: usize = 4;

/// What the file's template puts around one text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Template {
    before: Vec<u32>,
    after: Vec<u32>,
}

/// A text as token ids, and how long it was.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Special tokens included, cut to `max_length`.
    pub text: TokenizedText,
    /// Tokens before the cut, special tokens included.
    pub full_length: usize,
    /// False for a text that was read only as far as to know that it is too long: it has more tokens than that.
    pub is_counted: bool,
}

impl Encoded {
    pub fn is_truncated(&self) -> bool {
        self.full_length > self.text.ids.len()
    }
}

impl TextTokenizer {
    /// `json` is the content of tokenizer.json, `vocabulary` the number of rows of the model's word embeddings.
    ///
    /// # Errors
    /// The file is malformed, gives ids that the model has no embedding for, or `max_length` has no room for a token.
    pub fn new(json: &[u8], settings: TextSettings, vocabulary: usize) -> Result<Self, TextError> {
        let unreadable = |error: tokenizers::Error| TextError::Unreadable {
            file: "tokenizer.json",
            message: error.to_string(),
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(unreadable)?;
        tokenizer.with_padding(None);
        let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        if largest as usize >= vocabulary {
            return Err(TextError::Mismatch { id: largest, rows: vocabulary });
        }
        tokenizer.with_truncation(None).map_err(unreadable)?;
        let mut template = Template::read(&tokenizer)?;
        if let Some(token) = &settings.end_token {
            template.end_with(token, &mut tokenizer)?;
        }
        // The post-processor writes its ids as they stand in the file, whatever the vocabulary says.
        let foreign = template.before.iter().chain(&template.after).find(|id| **id as usize >= vocabulary);
        if let Some(&id) = foreign {
            return Err(TextError::Mismatch { id, rows: vocabulary });
        }
        let least = template.length() + 1;
        if settings.max_length < least || settings.max_length > settings.positions {
            let (asked, most) = (settings.max_length, settings.positions);
            return Err(TextError::MaxLength { asked, least, most });
        }
        let truncation = TruncationParams {
            max_length: settings.max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
            direction: TruncationDirection::Right,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(unreadable)?;
        let added = tokenizer.get_added_tokens_decoder();
        let added_bytes_max = added.values().map(|token| token.content.len()).max().unwrap_or(0);
        Ok(TextTokenizer { tokenizer, settings, template, vocabulary, added_bytes_max })
    }

    /// Longest text in tokens, special tokens included.
    pub fn max_length(&self) -> usize {
        self.settings.max_length
    }

    /// Rows of the model's word embeddings: every id is below.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    pub fn settings(&self) -> &TextSettings {
        &self.settings
    }

    /// One text after `prompt` (which may be empty). Of a text far above `max_length` only the beginning is read,
    /// with the same ids as if it had been read to its end.
    ///
    /// # Errors
    /// The tokenizer cannot process it.
    pub fn encode(&self, text: &str, prompt: &str) -> Result<Encoded, TextError> {
        let text = self.prepare(text, prompt);
        let mut bytes = self.settings.max_length * BYTES_PER_TOKEN;
        while bytes < text.len() {
            let piece = &text[..text.floor_char_boundary(bytes)];
            let encoding = self.tokenizer.encode(piece, true).map_err(encode_error)?;
            let full_length = self.certain_tokens(&encoding, piece.len()) + self.template.length();
            if full_length > self.settings.max_length {
                return Ok(Encoded { full_length, is_counted: false, ..self.finish(&encoding) });
            }
            bytes = bytes.saturating_mul(GROWTH);
        }
        let encoding = self.tokenizer.encode(text, true);
        encoding.map(|encoding| self.finish(&encoding)).map_err(encode_error)
    }

    /// Tokens of a piece of `bytes` bytes from the beginning of a text that the whole text has as well.
    ///
    /// Tokenizers split a text into words, from left to right, and words into tokens. What follows the piece may
    /// continue its last word, and may complete an added token of which the piece holds the beginning; the words
    /// before stay as they are. (One that does not split has a single word, and is read to the end of the text.)
    fn certain_tokens(&self, encoding: &Encoding, bytes: usize) -> usize {
        let parts = || std::iter::once(encoding).chain(encoding.get_overflowing());
        let tokens = || {
            parts()
                .flat_map(|part| part.get_word_ids().iter().zip(part.get_offsets()))
                .filter_map(|(word, &(_, end))| word.map(|word| (word, end)))
        };
        let last = tokens().map(|(word, _)| word).max();
        let limit = bytes.saturating_sub(self.added_bytes_max);
        tokens().filter(|&(word, end)| Some(word) != last && end <= limit).count()
    }

    /// Many texts after one prompt, in order. Run inside the pool of a backend, it uses that pool's threads.
    ///
    /// # Errors
    /// The tokenizer cannot process one of them.
    pub fn encode_all<T: AsRef<str>>(&self, texts: &[T], prompt: &str) -> Result<Vec<Encoded>, TextError> {
        let prepared: Vec<String> = texts.iter().map(|text| self.prepare(text.as_ref(), prompt)).collect();
        let encodings = self.tokenizer.encode_batch(prepared, true).map_err(encode_error)?;
        Ok(encodings.iter().map(|encoding| self.finish(encoding)).collect())
    }

    /// Token ids that a client made with this tokenizer. Special tokens are added unless the ids carry them.
    /// An id without embedding is the `Err`.
    pub fn adopt(&self, ids: &[u32], prompt: &str) -> Result<Encoded, ForeignId> {
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            return Err(ForeignId { id, vocabulary: self.vocabulary });
        }
        let Template { before, after } = &self.template;
        let bare =
            match ids.strip_prefix(before.as_slice()).and_then(|ids| ids.strip_suffix(after.as_slice())) {
                Some(inner) if self.template.length() > 0 => inner,
                _ => ids,
            };
        let mut content = self.prompt_ids(prompt);
        content.extend_from_slice(bare);
        let full_length = content.len() + self.template.length();
        content.truncate(self.settings.max_length - self.template.length());
        let ids = [before.as_slice(), &content, after.as_slice()].concat();
        let type_ids = vec![0; ids.len()];
        Ok(Encoded { text: TokenizedText { ids, type_ids }, full_length, is_counted: true })
    }

    fn prompt_ids(&self, prompt: &str) -> Vec<u32> {
        if prompt.is_empty() {
            return Vec::new();
        }
        let encoding = self.tokenizer.encode(prompt, false);
        encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    /// sentence-transformers strips the text after putting the prompt before it, and some models ask for lower case.
    fn prepare(&self, text: &str, prompt: &str) -> String {
        let joined = [prompt, text].concat();
        let stripped = joined.trim();
        if self.settings.lower_case { stripped.to_lowercase() } else { stripped.to_owned() }
    }

    fn finish(&self, encoding: &Encoding) -> Encoded {
        let text =
            TokenizedText { ids: encoding.get_ids().to_vec(), type_ids: encoding.get_type_ids().to_vec() };
        // What was cut off comes back in pieces, each with special tokens of its own.
        let cut = encoding.get_overflowing().iter().map(|part| part.len() - self.template.length());
        let full_length = text.ids.len() + cut.sum::<usize>();
        Encoded { text, full_length, is_counted: true }
    }
}

/// A token id that no embedding belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignId {
    pub id: u32,
    pub vocabulary: usize,
}

impl Template {
    /// Learns the special tokens by looking at what the tokenizer makes of a one-letter text.
    fn read(tokenizer: &Tokenizer) -> Result<Template, TextError> {
        let bare = tokenizer.encode("a", false).map_err(encode_error)?;
        let full = tokenizer.encode("a", true).map_err(encode_error)?;
        let (bare, full) = (bare.get_ids(), full.get_ids());
        let start = full.windows(bare.len().max(1)).position(|window| window == bare).unwrap_or(0);
        let end = (start + bare.len()).min(full.len());
        Ok(Template { before: full[..start].to_vec(), after: full[end..].to_vec() })
    }

    /// Appends `token` if the template does not end with it.
    fn end_with(&mut self, token: &str, tokenizer: &mut Tokenizer) -> Result<(), TextError> {
        let unreadable = |message: String| TextError::Unreadable { file: "tokenizer_config.json", message };
        let id = tokenizer.token_to_id(token);
        let id = id.ok_or_else(|| unreadable(format!("eos_token {token} is not in tokenizer.json")))?;
        if self.after.last() == Some(&id) {
            return Ok(());
        }
        self.after.push(id);
        let name = |id: &u32| tokenizer.id_to_token(*id).map(|name| (name, *id));
        let names = self.before.iter().chain(&self.after).map(name).collect::<Option<Vec<_>>>();
        let names = names.ok_or_else(|| unreadable("special tokens without names".to_owned()))?;
        let mut single: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
        single.insert(self.before.len(), "$A".to_owned());
        let mut processor = TemplateProcessing::builder();
        processor.try_single(single).map_err(unreadable)?.special_tokens(names);
        let processor = processor.build().map_err(|error| unreadable(error.to_string()))?;
        tokenizer.with_post_processor(Some(processor));
        Ok(())
    }

    fn length(&self) -> usize {
        self.before.len() + self.after.len()
    }
}

fn encode_error(error: tokenizers::Error) -> TextError {
    TextError::Encode { message: error.to_string() }
}

/// A tokenizer small enough to know by heart, for tests of what stands on tokenizers.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A word-piece tokenizer with a handful of words, stored with padding and truncation.
    pub(crate) fn small_file() -> Vec<u8> {
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "query", ":"];
        let vocabulary: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
        let special = |token: &str, id: u32| serde_json::json!({"id": token, "ids": [id], "tokens": [token]});
        serde_json::json!({
            "version": "1.0",
            "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [],
            "normalizer": null, "pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3)}},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocabulary}
        })
        .to_string()
        .into_bytes()
    }

    /// Ids: `[CLS]` 2, `[SEP]` 3, `a` 4, `b` 5, `c` 6; nine in all.
    pub(crate) fn small_tokenizer(max_length: usize) -> TextTokenizer {
        TextTokenizer::new(&small_file(), small_settings(max_length), 9).expect("a well-formed file")
    }

    /// Texts whose length says little about their number of tokens.
    pub(crate) fn awkward_texts() -> Vec<String> {
        let long = 40_000;
        let mut texts = vec![
            "x".repeat(long),
            "央行".repeat(long),
            "\u{0}".repeat(long),
            "!?".repeat(long),
            "e\u{301}".repeat(long),
            format!("a{}b", " ".repeat(long)),
            format!("a{}b", "\u{301}".repeat(long)),
            format!("a b {} c a b c a b c", "x".repeat(long)),
            "[MASK]".repeat(long),
            format!("{} [MASK] a b c", "[".repeat(long)),
        ];
        // Cuts fall at every place of a word and of an added token.
        texts.extend((0..40).map(|shift| format!("{}{}", "b".repeat(shift), "a [MASK] bank's ".repeat(900))));
        texts
    }

    pub(crate) fn small_settings(max_length: usize) -> TextSettings {
        let prompts = std::collections::BTreeMap::new();
        TextSettings {
            max_length,
            positions: 512,
            lower_case: false,
            prompts,
            default_prompt: None,
            end_token: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{awkward_texts, small_file, small_settings as settings};
    use super::*;
    use std::path::PathBuf;

    const VOCABULARY: usize = 30522;

    /// tokenizer.json of the test model; absent where `MOTLEY_TEST_MODEL` names none.
    fn model_file() -> Option<Vec<u8>> {
        let Some(folder) = std::env::var_os("MOTLEY_TEST_MODEL") else {
            crate::text::say_skipped("MOTLEY_TEST_MODEL names no model folder");
            return None;
        };
        Some(std::fs::read(PathBuf::from(folder).join("tokenizer.json")).unwrap())
    }

    #[test]
    fn stored_padding_and_truncation_are_overridden() {
        let tokenizer = TextTokenizer::new(&small_file(), settings(6), 9).unwrap();
        assert_eq!(tokenizer.encode("a b", "").unwrap().text.ids, [2, 4, 5, 3]);
        let long = tokenizer.encode("a b c a b c a b c", "").unwrap();
        assert_eq!((long.text.ids.as_slice(), long.full_length), (&[2, 4, 5, 6, 4, 3][..], 11));
        assert!(long.is_truncated());
        let exact = tokenizer.encode("a b c a", "").unwrap();
        assert_eq!((exact.text.ids.len(), exact.full_length, exact.is_truncated()), (6, 6, false));
        assert_eq!(tokenizer.encode("", "").unwrap().text.ids, [2, 3]);
        assert_eq!(tokenizer.encode("a", "query: ").unwrap().text.ids, [2, 7, 8, 4, 3]);
    }

    #[test]
    fn a_text_read_in_part_has_the_ids_of_the_whole() {
        let mut tokenizers = vec![TextTokenizer::new(&small_file(), settings(6), 9).unwrap()];
        if let Some(json) = model_file() {
            for length in [3, 16, 256] {
                tokenizers.push(TextTokenizer::new(&json, settings(length), VOCABULARY).unwrap());
            }
        }
        for tokenizer in &tokenizers {
            for text in awkward_texts() {
                let whole = tokenizer.encode_all(&[&text], "").unwrap().remove(0);
                let read = tokenizer.encode(&text, "").unwrap();
                let what = format!("{} at {}", &text[..text.floor_char_boundary(20)], tokenizer.max_length());
                assert_eq!(read.text.ids, whole.text.ids, "{what}");
                assert_eq!(read.is_truncated(), whole.is_truncated(), "{what}");
                let counted = read.full_length == whole.full_length;
                assert!(counted || (!read.is_counted && read.full_length < whole.full_length), "{what}");
            }
        }
        let read = tokenizers[0].encode(&"a b ".repeat(100_000), "").unwrap();
        assert!(!read.is_counted && read.full_length < 100, "{}", read.full_length);
    }

    #[test]
    fn client_ids_get_their_special_tokens_once() {
        let tokenizer = TextTokenizer::new(&small_file(), settings(6), 9).unwrap();
        assert_eq!(tokenizer.adopt(&[4, 5], "").unwrap().text.ids, [2, 4, 5, 3]);
        assert_eq!(tokenizer.adopt(&[2, 4, 5, 3], "").unwrap().text.ids, [2, 4, 5, 3]);
        assert_eq!(tokenizer.adopt(&[4], "query: ").unwrap().text.ids, [2, 7, 8, 4, 3]);
        assert_eq!(tokenizer.adopt(&[4; 9], "").unwrap().full_length, 11);
        assert_eq!(tokenizer.adopt(&[4, 9], "").unwrap_err(), ForeignId { id: 9, vocabulary: 9 });
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let message = TextTokenizer::new(&small_file(), settings(6), 8).unwrap_err().to_string();
        assert!(message.contains("ids up to 8") && message.contains("8 tokens"), "{message}");
        let template = String::from_utf8(small_file()).unwrap().replace("\"ids\":[3]", "\"ids\":[9999]");
        let message = TextTokenizer::new(template.as_bytes(), settings(6), 9).unwrap_err().to_string();
        assert!(message.contains("ids up to 9999") && message.contains("9 tokens"), "{message}");
        let message = TextTokenizer::new(b"{}", settings(6), 9).unwrap_err().to_string();
        assert!(message.starts_with("tokenizer.json is not usable"), "{message}");
        for length in [0, 2, 513] {
            let error = TextTokenizer::new(&small_file(), settings(length), 9).unwrap_err();
            assert!(matches!(error, TextError::MaxLength { least: 3, most: 512, .. }), "{error}");
        }
    }

    #[test]
    fn ids_are_those_of_the_reference() {
        let Some(json) = model_file() else { return };
        let shared = std::env::var_os("MOTLEY_SHARED").map_or("../../../shared".into(), PathBuf::from);
        let path = shared.join("reference/minilm_embeddings.jsonl");
        if !path.exists() {
            return crate::text::say_skipped(&format!("{} is absent", path.display()));
        }
        let tokenizer = TextTokenizer::new(&json, settings(256), VOCABULARY).unwrap();
        let mut rows = super::super::Rows::open(&path, "minilm_embeddings.jsonl").unwrap();
        let (mut texts, mut expected) = (Vec::new(), Vec::new());
        while let Some(row) = rows.next_row().unwrap() {
            texts.push(row.any_text("text").unwrap().to_owned());
            expected.push(row.fields["token_ids"].as_array().unwrap().clone());
        }
        let got = tokenizer.encode_all(&texts, "").unwrap();
        assert_eq!(got.len(), 128);
        for ((text, got), expected) in texts.iter().zip(&got).zip(&expected) {
            let ids: Vec<u64> = expected.iter().map(|id| id.as_u64().unwrap()).collect();
            assert_eq!(got.text.ids.iter().map(|&id| u64::from(id)).collect::<Vec<_>>(), ids, "{text:?}");
            assert_eq!(tokenizer.encode(text, "").unwrap().text.ids, got.text.ids);
        }
    }
}
