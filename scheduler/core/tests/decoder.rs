//! The decoder against garbage: it never panics, never reserves more than its limit, and what it accepts it can
//! write again. The corpus is the golden file, mutated.
//!
//! A test program of its own, because it counts what is allocated.

#[path = "../src/wire/fuzz.rs"]
mod fuzz;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use motley_scheduler_core::document::{Document, apply_overrides};
use motley_scheduler_core::wire::client::FromClient;
use motley_scheduler_core::wire::codec::{CodecError, Limit, decode, encode};
use motley_scheduler_core::wire::join::JoinRequest;
use proptest::prelude::*;

thread_local! {
    /// Largest single allocation of this thread since it was last set to 0.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to `System` with the same arguments, so its guarantees are kept; the cell is
// thread-local, needs no destructor and does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promises on `layout` are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// serde reserves at most this much for a list before it has seen its items.
const SERDE_RESERVES_MAX: usize = 1 << 20;

/// Through the fuzzers' entry, as the message type that a line of the golden file names. Says whether it was accepted.
fn try_named(name: &str, bytes: &[u8]) -> bool {
    let name = name.split("::").next().unwrap_or_default();
    let kind = fuzz::TYPES.iter().position(|(known, _)| *known == name);
    let kind = kind.unwrap_or_else(|| panic!("the fuzzers' entry does not know {name}"));
    let input = [&[kind as u8], bytes].concat();
    LARGEST.with(|largest| largest.set(0));
    let accepted = fuzz::message(&input);
    let largest = LARGEST.with(Cell::get);
    assert!(
        largest <= fuzz::TYPES[kind].1.bytes().max(SERDE_RESERVES_MAX),
        "{name}: reserved {largest} bytes"
    );
    accepted
}

fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let hex = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).expect("the file is ASCII");
        u8::from_str_radix(digits, 16).expect("hexadecimal digits")
    };
    let line = |line: &'static str| {
        let (name, digits) = line.split_once(' ').expect("a name and its bytes");
        (name, digits.as_bytes().chunks(2).map(hex).collect())
    };
    let lines = include_str!("../golden/messages.txt").lines().map(line);
    lines.filter(|(name, _)| !name.starts_with("Principal")).collect()
}

#[test]
fn corpus_is_accepted() {
    for (name, bytes) in corpus() {
        assert!(try_named(name, &bytes), "{name}");
    }
}

#[test]
fn lying_lengths_are_refused_without_the_memory_they_claim() {
    // The codec's marker of an eight-byte number, then 2^40 and the largest there is.
    for lie in [1u64 << 40, u64::MAX, 1 << 25] {
        let lie = [&[253u8][..], &lie.to_le_bytes()].concat();
        for (name, bytes) in corpus() {
            for at in 0..bytes.len() {
                let mut told = bytes[..at].to_vec();
                told.extend(&lie);
                told.extend(&bytes[at + 1..]);
                try_named(name, &told);
            }
        }
    }
}

#[test]
fn messages_over_the_limit_are_neither_sent_nor_read() {
    let long = "x".repeat(Limit::Join.bytes());
    let request = JoinRequest { version: 1, secret: long, certificate_request: vec![], name: String::new() };
    let too_large = |result: Result<(), CodecError>| matches!(result, Err(CodecError::TooLarge { .. }));
    assert!(too_large(encode(&request, Limit::Join).map(|_| ())));
    let bytes = encode(&request, Limit::Bulk).unwrap();
    assert!(too_large(decode::<JoinRequest>(&bytes, Limit::Join).map(|_| ())));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_messages_are_refused_or_rewritten(
        index in any::<prop::sample::Index>(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let corpus = corpus();
        let (name, mut bytes) = corpus[index.index(corpus.len())].clone();
        for (at, value) in mutations {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(tail);
        try_named(name, &bytes);
    }

    #[test]
    fn garbage_is_no_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (name, _) in fuzz::TYPES {
            try_named(name, &bytes);
        }
        fuzz::message(&bytes);
    }

    #[test]
    fn texts_and_figures_survive_the_wire(
        document in ".*",
        memory in prop::collection::vec(any::<u64>(), 0..5),
    ) {
        let memory = memory.into_iter().map(motley_scheduler_core::unit::Bytes).collect();
        let message = FromClient::Submit { document, files: vec![], memory };
        let bytes = encode(&message, Limit::Client).unwrap();
        prop_assert_eq!(decode::<FromClient>(&bytes, Limit::Client), Ok(message));
    }

    #[test]
    fn no_document_text_is_fatal(text in "(\\PC|\n){0,200}", key in "[a-z.0-9]{0,20}", value in "\\PC{0,20}") {
        let _ = Document::parse(&text);
        let _ = apply_overrides(&text, &[(key, value)]);
    }

    #[test]
    fn damaged_documents_are_complained_about(
        at in any::<prop::sample::Index>(),
        length in 0usize..30,
        with in "[\\]\\[\"={}.,\na-z0-9 ]{0,8}",
    ) {
        const DOCUMENT: &str = "version = 1\nkind = \"train\"\nname = \"a\"\n[resources]\ndevices = \"1..2\"\n\
            memory = \"1GiB\"\n[model]\nsource = \"a/b\"\nprompts = { q = \"x\" }\n[adapter]\nkind = \"qlora\"\n\
            targets = [\"query\"]\n[data]\ntrain = \"t.jsonl\"\n[loss]\nkind = \"cosent\"\n[schedule]\n\
            warmup = 0.1\n[[evaluate]]\ntask = \"sts\"\ndata = \"d\"\n";
        prop_assert!(Document::parse(DOCUMENT).is_ok());
        let at = at.index(DOCUMENT.len());
        let mut text = DOCUMENT.to_owned();
        text.replace_range(at..(at + length).min(DOCUMENT.len()), &with);
        if let Err(error) = Document::parse(&text) {
            prop_assert!(error.to_string().len() < 1000);
        }
    }
}
