//! Tokenizers of decoders: byte-level BPE with an end token (Qwen), and BPE over marked spaces with a start token to
//! which an end token comes (Mistral, Llama).

use serde_json::{Map, Value, json};

use super::tokenizer::testing::{awkward_texts, small_settings};
use super::{TextError, TextTokenizer};

const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What byte-level BPE writes for each byte (GPT-2's table).
fn letter_of(byte: u32) -> char {
    let is_shown = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let shifted = || 256 + (0..byte).filter(|other| !is_shown(other)).count() as u32;
    char::from_u32(if is_shown(&byte) { byte } else { shifted() }).unwrap()
}

fn special(token: &str, id: usize) -> Value {
    json!({"id": token, "ids": [id], "tokens": [token]})
}

fn added(token: &str, id: usize) -> Value {
    json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// All bytes, `ab`, ` a` and ` ab`; then the end token 259.
pub(crate) fn byte_level_file() -> Vec<u8> {
    let letters = (0..256).map(|byte| letter_of(byte).to_string());
    let tokens = letters.chain(["ab", "Ġa", "Ġab"].map(str::to_owned));
    let vocabulary: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": false});
    let split =
        json!({"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": false});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let end = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let template = json!({"type": "TemplateProcessing", "single": [text, end], "pair": [text, end],
        "special_tokens": {"<|endoftext|>": special("<|endoftext|>", 259)}});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added("<|endoftext|>", 259)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["a", "b"], ["Ġ", "a"], ["Ġ", "ab"]]}
    });
    file.to_string().into_bytes()
}

/// `<unk>` 0, `<s>` 1, `</s>` 2, bytes from 3 on, then `▁`, `a`, `b`, `▁a`; texts start with `<s>`.
fn marked_spaces_file() -> Vec<u8> {
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(bytes);
    let tokens = tokens.chain(["▁", "a", "b", "▁a"].map(str::to_owned));
    let vocabulary: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let start = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added("<unk>", 0), added("<s>", 1), added("</s>", 2)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [start, text], "pair": [start, text],
            "special_tokens": {"<s>": special("<s>", 1)}},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary, "merges": [["▁", "a"]]}
    });
    file.to_string().into_bytes()
}

fn byte_level(max_length: usize) -> TextTokenizer {
    TextTokenizer::new(&byte_level_file(), small_settings(max_length), 260).unwrap()
}

fn marked_spaces(max_length: usize, end_token: Option<&str>) -> Result<TextTokenizer, TextError> {
    let mut settings = small_settings(max_length);
    settings.end_token = end_token.map(str::to_owned);
    TextTokenizer::new(&marked_spaces_file(), settings, 263)
}

fn ids(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, "").unwrap().text.ids
}

#[test]
fn bytes_merge_within_words_and_the_end_token_stays_behind_what_is_cut() {
    let tokenizer = byte_level(5);
    let letter = |letter: char| u32::from(letter);
    assert_eq!(ids(&tokenizer, "ab ab a"), [256, 258, 257, 259]);
    assert_eq!(ids(&tokenizer, "é"), [0xc3, 0xa9, 259].map(|byte| byte));
    assert_eq!(ids(&tokenizer, "e\u{301}"), ids(&tokenizer, "é"));
    assert_eq!(ids(&tokenizer, "1234567"), [letter('1'), letter('2'), letter('3'), letter('4'), 259]);
    assert_eq!(ids(&tokenizer, ""), [259]);
    let cut = tokenizer.encode_all(&["ab ".repeat(50)], "").unwrap().remove(0);
    assert_eq!((cut.text.ids.last(), cut.full_length), (Some(&259), 51));
    assert!(cut.is_truncated() && cut.text.type_ids == [0; 5]);
    assert_eq!(tokenizer.adopt(&[256, 259], "").unwrap().text.ids, [256, 259]);
    assert_eq!(tokenizer.adopt(&[256; 9], "ab").unwrap().text.ids, [256, 256, 256, 256, 259]);
}

#[test]
fn an_end_token_that_the_file_lacks_is_appended_where_it_is_asked_for() {
    assert_eq!(ids(&marked_spaces(5, None).unwrap(), "a b"), [1, 262, 259, 261]);
    let ended = marked_spaces(5, Some("</s>")).unwrap();
    assert_eq!(ids(&ended, "a b"), [1, 262, 259, 261, 2]);
    assert_eq!(ids(&ended, "a b a b a"), [1, 262, 259, 261, 2]);
    assert_eq!(ids(&ended, "é"), [1, 259, 3 + 0xc3, 3 + 0xa9, 2]);
    assert_eq!(ended.encode_all(&["a", ""], "").unwrap()[1].text.ids.last(), Some(&2));
    assert_eq!(ended.adopt(&[262], "").unwrap().text.ids, [1, 262, 2]);
    let message = marked_spaces(5, Some("<end>")).unwrap_err().to_string();
    assert!(message.contains("tokenizer_config.json") && message.contains("<end>"), "{message}");
    // Asked for and there: once.
    let mut settings = small_settings(5);
    settings.end_token = Some("<|endoftext|>".to_owned());
    let tokenizer = TextTokenizer::new(&byte_level_file(), settings, 260).unwrap();
    assert_eq!(ids(&tokenizer, "ab"), [256, 259]);
}

#[test]
fn a_text_read_in_part_has_the_ids_of_the_whole() {
    let (words, one_word) = (byte_level(16), marked_spaces(16, Some("</s>")).unwrap());
    // A tokenizer that does not split a text merges it as one word, which is slow for long ones: a few will do.
    let all = awkward_texts();
    let few = all.iter().step_by(9).map(|text| (&one_word, text));
    for (tokenizer, text) in all.iter().map(|text| (&words, text)).chain(few) {
        let whole = tokenizer.encode_all(&[text], "").unwrap().remove(0);
        let read = tokenizer.encode(text, "").unwrap();
        let what = &text[..text.floor_char_boundary(20)];
        assert!(read.text.ids == whole.text.ids, "{what}");
        assert_eq!(read.is_truncated(), whole.is_truncated(), "{what}");
    }
}
