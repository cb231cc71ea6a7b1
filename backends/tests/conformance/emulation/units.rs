//! The text of one C++ unit.

use std::fmt::Write;

use motley_kernels::{Access, Binding, Dtype, Entry};

const HEADER: &str = include_str!("emulated.cuh");

fn entries() -> impl Iterator<Item = &'static Entry> {
    motley_kernels::ALL.iter().flat_map(|kernel| kernel.entries.iter().copied())
}

/// Shared memory that comes with the launch is one pointer here.
fn with_dynamic_memory(source: &str) -> String {
    let mut text = String::new();
    for (index, part) in source.split("extern __shared__ ").enumerate() {
        if index == 0 {
            text.push_str(part);
            continue;
        }
        let (declaration, rest) = part.split_once("[];").expect("an array of unknown size");
        let (kind, name) = declaration.rsplit_once(' ').expect("a type and a name");
        let _infallible = write!(text, "{kind}* {name} = ({kind}*)emulated::dynamic_shared;{rest}");
    }
    text
}

/// A unit that is preprocessed to find the names of its kernels, which macros may make.
pub fn probe(name: &str, source: &str) -> String {
    // Without the headers of the system there is less to look through.
    let header: String =
        HEADER.lines().filter(|line| !line.starts_with("#include")).map(|line| format!("{line}\n")).collect();
    format!("#define MOTLEY_NAMES\n#define MOTLEY_SOURCE {name}\n{header}\n{}", with_dynamic_memory(source))
}

/// Names of the kernels in a preprocessed source.
pub fn kernels(text: &str) -> Vec<String> {
    let name = |part: &str| {
        let (before, _) = part.split_once('(')?;
        before.split_whitespace().next_back().map(str::to_owned)
    };
    text.split("__global__").skip(1).filter_map(name).collect()
}

/// The whole unit. Names of the source are its own, so that units may be linked together.
pub fn unit(name: &str, source: &str, kernels: &[String]) -> String {
    let source = with_dynamic_memory(source);
    let mut text = format!(
        "#define MOTLEY_SOURCE {name}\n{HEADER}\nnamespace {{\n#line 1 \"{name}.cu\"\n{source}\n}}\n"
    );
    for kernel in kernels {
        let _infallible = writeln!(
            text,
            "extern \"C\" __attribute__((visibility(\"default\"))) const char* {kernel}__launch(\
             u32 blocks, u32 threads, u32 shared_bytes, void** buffers, const void* args) {{\n    \
             return emulated::launch({kernel}, blocks, threads, shared_bytes, buffers, args);\n}}"
        );
        // Functions for tensor cores have the name of an entry and an ending.
        let entry = entries().filter(|entry| kernel.starts_with(&entry.name.replace('.', "_")));
        if let Some(entry) = entry.max_by_key(|entry| entry.name.len()) {
            text.push_str(&assertions(kernel, entry));
        }
    }
    text
}

/// The layout of the arguments, and the types of the buffers.
fn assertions(kernel: &str, entry: &Entry) -> String {
    let signature = format!("emulated::Signature<decltype(&{kernel})>");
    let mut text = format!("static_assert({signature}::count == {});\n", entry.bindings.len() + 1);
    for (index, binding) in entry.bindings.iter().enumerate() {
        let (given, wanted) = (format!("{signature}::Parameter<{index}>"), pointer(binding));
        let _infallible =
            writeln!(text, "static_assert(std::is_same_v<{given}, {wanted}>, \"{}\");", binding.name);
    }
    let args = format!("{signature}::Args");
    let _infallible = writeln!(text, "static_assert(sizeof({args}) == {});", entry.argument_bytes());
    for (index, field) in entry.arguments.iter().enumerate() {
        let (name, offset) = (field.name, index * 4);
        let kind = if field.dtype == Dtype::F32 { "float" } else { "u32" };
        let _infallible = writeln!(
            text,
            "static_assert(offsetof({args}, {name}) == {offset} && \
             std::is_same_v<decltype({args}::{name}), {kind}>, \"{name}\");"
        );
    }
    text
}

fn pointer(binding: &Binding) -> String {
    let element = match binding.dtype {
        Dtype::F32 => "float",
        Dtype::U32 => "u32",
        Dtype::U8 => "u8",
        Dtype::Activation => "activation",
    };
    let constant = if binding.access == Access::Read { "const " } else { "" };
    format!("{constant}{element}*")
}

#[test]
fn kernels_are_found_behind_launch_bounds_and_macros() {
    let text = "extern \"C\" __global__ void first(int x) {} \
                extern \"C\" __global__ void second_32 (const float* x) { }";
    assert_eq!(kernels(text), ["first", "second_32"]);
    let shared = with_dynamic_memory("f() {\n    extern __shared__ float memory[];\n}");
    assert_eq!(shared, "f() {\n    float* memory = (float*)emulated::dynamic_shared;\n}");
}
