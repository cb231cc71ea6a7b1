//! Many requests at once, and large ones: shared batches, a bounded queue, bounded bodies.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn concurrent_requests_share_batches_within_the_budget() {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let (seen, gate) = (Arc::clone(&sizes), Gate::default());
    let mut gated = gate.compute();
    let compute: Compute = Box::new(move |texts| {
        seen.lock().unwrap().push((texts.len(), texts.iter().map(|text| text.ids.len()).sum::<usize>()));
        gated(texts)
    });
    let limits = EngineLimits { token_budget: 20, queue_tokens_max: 100_000 };
    let server = Server::start(Setup { compute, limits, ..Setup::default() });
    let texts = ["a", "b b", "c a b", "a b c a b c"];
    let input_of = |worker: usize| (0..5).map(|turn| texts[(worker + turn) % 4]).collect::<Vec<_>>();
    let tokens = |texts: &[&str]| texts.iter().map(|text| text.split(' ').count() + 2).sum::<usize>();
    let all: usize = (0..16).map(|worker| tokens(&input_of(worker))).sum();
    std::thread::scope(|scope| {
        for worker in 0..16 {
            let (server, input) = (&server, input_of(worker));
            scope.spawn(move || {
                let answer = server.embed(json!({"model": "tiny", "input": input}));
                assert_eq!(answer.status, 200);
                for (row, text) in answer.json()["data"].as_array().unwrap().iter().zip(&input) {
                    let words = text.split(' ').count() as f64;
                    assert_eq!(row["embedding"][0].as_f64().unwrap(), words + 2.0, "{text}");
                }
            });
        }
        // All wait before the first batch is done.
        until("all requests", || server.app.metrics.queue_tokens.get() == all as i64);
        gate.open();
    });
    let sizes = sizes.lock().unwrap();
    assert_eq!(sizes.iter().map(|size| size.0).sum::<usize>(), 80);
    assert!(sizes.iter().all(|size| size.1 <= 20), "{sizes:?}");
    // Each request alone takes two batches.
    assert!(sizes.len() < 32, "no sharing: {sizes:?}");
}

#[test]
fn overload_is_answered_with_429_and_a_hint_and_passes() {
    let gate = Gate::default();
    let limits = EngineLimits { token_budget: 8, queue_tokens_max: 32 };
    let server = Server::start(Setup { compute: gate.compute(), limits, ..Setup::default() });
    let (served, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| {
                let answer = server.embed(json!({"model": "tiny", "input": "a b"}));
                match answer.status {
                    200 => served.fetch_add(1, Ordering::SeqCst),
                    429 => {
                        let hint: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
                        assert!((50..=60_000).contains(&hint));
                        assert_eq!(answer.json()["error"]["type"], json!("rate_limit_error"));
                        refused.fetch_add(1, Ordering::SeqCst)
                    }
                    status => panic!("{status}: {answer:?}"),
                };
            });
        }
        until("32 refusals", || refused.load(Ordering::SeqCst) == 32);
        assert_eq!(server.request("GET", "/ready", "", "").json()["status"], json!("overloaded"));
        assert_eq!(server.request("GET", "/health", "", "").status, 200);
        gate.open();
    });
    assert_eq!((served.load(Ordering::SeqCst), refused.load(Ordering::SeqCst)), (8, 32));
    assert_eq!(server.embed(json!({"model": "tiny", "input": "a"})).status, 200);
}

#[test]
fn bodies_without_room_are_refused_before_they_are_read() {
    let server = Server::start(Setup::default());
    let upload = || begin(server.address, BODY_MAX, "{\"model\": ");
    let uploads: Vec<TcpStream> = (0..BLOCKING_THREADS_MAX).map(|_| upload()).collect();
    until("the uploads", || server.app.in_flight.load(Ordering::SeqCst) == BLOCKING_THREADS_MAX);
    let answer = end(upload());
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (429, &json!("overloaded")), "{answer:?}");
    let hint: u64 = answer.header("retry-after-ms").unwrap().parse().unwrap();
    assert!(hint >= 500, "{hint}");
    assert_eq!(server.request("GET", "/health", "", "").status, 200);
    drop(uploads);
    until("the room of clients that have gone", || server.app.in_flight.load(Ordering::SeqCst) == 0);
    assert_eq!(server.embed(json!({"model": "tiny", "input": "a"})).status, 200);
    // One that says how large it is need not be read to be refused.
    assert_eq!(end(begin(server.address, BODY_MAX + 1, "{")).status, 413);
}

#[test]
fn the_texts_of_a_client_that_has_gone_are_not_tokenized() {
    let (tokenizer, limits) =
        (small_tokenizer(8), RequestLimits { inputs_max: 8, tokens_max: 100, truncate: Truncate::Error });
    let input = api::Input::Texts(vec!["a".into(), "b".into(), "c".into()]);
    let looked = AtomicUsize::new(0);
    let tokenize = |looks: usize| {
        looked.store(0, Ordering::SeqCst);
        let still_asked = || looked.fetch_add(1, Ordering::SeqCst) < looks;
        api::tokenize(&input, &tokenizer, "", limits, &still_asked).unwrap()
    };
    assert_eq!(tokenize(3).map(|texts| texts.len()), Some(3));
    assert!(tokenize(2).is_none());
    assert!(tokenize(0).is_none());
    assert_eq!(looked.load(Ordering::SeqCst), 1, "the first look is the last");
}

#[test]
fn a_text_of_megabytes_is_told_to_be_too_long() {
    let server = Server::start(Setup::default());
    let answer = server.embed(json!({"model": "tiny", "input": "a b ".repeat(200_000)}));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert!(answer.body.contains("you requested at least "), "{}", answer.body);
    let blank = server.embed(json!({"model": "tiny", "input": format!("a{}b", " ".repeat(200_000))}));
    assert_eq!((blank.status, first(&blank)[0]), (200, 4.0), "blanks are no tokens");
}
