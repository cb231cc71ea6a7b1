//! The emulation notices what a card would do wrong, and multiplies as tensor cores do.

use std::ffi::{CStr, c_char, c_void};

use libloading::Library;
use motley_backends::Precision;

use super::emulation::{Absence, library_of};

type Launch = unsafe extern "C" fn(u32, u32, u32, *const *mut c_void, *const c_void) -> *const c_char;

const SOURCE: &str = include_str!("tests.cu");

/// Runs a kernel of tests.cu on a buffer; what went wrong.
fn run(library: &Library, kernel: &str, threads: u32, buffer: &mut [f32]) -> Option<String> {
    let count = buffer.len() as u32;
    let buffers = [buffer.as_mut_ptr().cast::<c_void>()];
    // SAFETY: each kernel of tests.cu takes one buffer and its count, and stays inside of it.
    let told = unsafe {
        let launch =
            library.get::<Launch>(format!("{kernel}__launch").as_bytes()).expect("a kernel of tests.cu");
        launch(2, threads, 1024, buffers.as_ptr(), std::ptr::from_ref(&count).cast())
    };
    // SAFETY: a text of the library, which is loaded.
    (!told.is_null()).then(|| unsafe { CStr::from_ptr(told) }.to_string_lossy().into_owned())
}

fn library() -> Option<Library> {
    let text = format!("{}{SOURCE}", motley_kernels::CUDA_PRELUDE);
    let path = match library_of("tests", vec![("tests", text)], Precision::Bf16) {
        Ok(path) => path,
        Err(Absence::NoCompiler) => {
            super::say("skipped: emulated CUDA needs g++ on x86-64\n");
            return None;
        }
        Err(Absence::Broken(problem)) => panic!("{problem}"),
    };
    // SAFETY: it was just built, and has nothing to initialise but memory.
    Some(unsafe { Library::new(path) }.expect("it was just built"))
}

#[test]
fn what_a_card_would_do_wrong_is_noticed() {
    let Some(library) = library() else { return };
    let mut buffer = vec![0.0; 256];
    let mut complaint = |kernel| run(&library, kernel, 64, &mut buffer).unwrap_or_default();
    assert!(complaint("half_a_warp_shuffles").contains("other lanes never reach"));
    assert!(complaint("two_shuffles_in_one_warp").contains("came apart"));
    assert!(complaint("misaligned_matrix").contains("no multiple of 16"));
    for kernel in ["missing_barrier", "missing_wait", "unwritten_shared", "missing_commit"] {
        let mut buffer = vec![0.0; 256];
        assert_eq!(run(&library, kernel, 64, &mut buffer), None);
        assert_ne!(buffer, vec![7.0; 256], "{kernel} passes unnoticed");
        assert_eq!(run(&library, "all_sound", 64, &mut buffer), None);
        assert_eq!(buffer, vec![7.0; 256]);
    }
}

#[test]
fn fragments_lie_as_the_architecture_says() {
    let Some(library) = library() else { return };
    // a [16, 16], then b [16, 8], small whole numbers; then place for the product.
    let value = |i: usize| (i * 7 % 11) as f32 - 5.0;
    let mut buffer: Vec<f32> = (0..16 * 16 + 16 * 8 + 16 * 8).map(value).collect();
    let (a, b) = (buffer[..256].to_vec(), buffer[256..384].to_vec());
    assert_eq!(run(&library, "product_of_fragments", 32, &mut buffer), None);
    for row in 0..16 {
        for column in 0..8 {
            let wanted: f32 = (0..16).map(|k| a[row * 16 + k] * b[k * 8 + column]).sum();
            assert_eq!(buffer[384 + row * 8 + column], wanted, "{row} {column}");
        }
    }
}
