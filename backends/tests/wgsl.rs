//! Every WGSL source against its kernel, without a device: naga validates it, and its entry points have the bindings
//! and the argument struct that the kernel's entries name, in the same places.

use std::collections::BTreeMap;

use motley_kernels::{ALL, Access, Dtype, Entry, Kernel, WGSL_PRELUDE, WGSL_PRELUDE_SUBGROUPS};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Handle, Module, Scalar, StorageAccess, Type, TypeInner, VectorSize};

/// Preludes, with what a device must be able to do for them.
const PRELUDES: [(&str, Capabilities); 2] =
    [(WGSL_PRELUDE, Capabilities::empty()), (WGSL_PRELUDE_SUBGROUPS, Capabilities::SUBGROUP)];

fn checked(kernel: &Kernel, (prelude, capabilities): (&str, Capabilities)) -> (Module, ModuleInfo) {
    let source = format!("{prelude}{}", kernel.wgsl);
    let module = naga::front::wgsl::parse_str(&source)
        .unwrap_or_else(|error| panic!("{}: {}", kernel.name, error.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}: {}", kernel.name, error.emit_to_string(&source)));
    (module, info)
}

/// Type and address space of what an entry point uses, by binding.
fn bindings(module: &Module, info: &ModuleInfo, name: &str) -> BTreeMap<u32, (Handle<Type>, AddressSpace)> {
    let index = module.entry_points.iter().position(|point| point.name == name);
    let used = info.get_entry_point(index.unwrap_or_else(|| panic!("no entry point {name}")));
    let mut found = BTreeMap::new();
    for (handle, variable) in module.global_variables.iter() {
        if let (Some(place), false) = (&variable.binding, used[handle].is_empty()) {
            assert_eq!(place.group, 0, "{name}");
            let twice = found.insert(place.binding, (variable.ty, variable.space)).is_some();
            assert!(!twice, "{name} uses binding {} twice", place.binding);
        }
    }
    found
}

fn scalar(dtype: Dtype) -> Scalar {
    match dtype {
        // Bytes come four in a word.
        Dtype::U32 | Dtype::U8 => Scalar::U32,
        Dtype::F32 | Dtype::Activation => Scalar::F32,
    }
}

fn check_buffers(entry: &Entry, module: &Module, found: &BTreeMap<u32, (Handle<Type>, AddressSpace)>) {
    for (index, binding) in entry.bindings.iter().enumerate() {
        let what = format!("{}: binding {index}, {}", entry.name, binding.name);
        let (ty, space) = found.get(&(index as u32)).unwrap_or_else(|| panic!("{what}: is not used"));
        let access = match binding.access {
            Access::Read => StorageAccess::LOAD,
            Access::Write | Access::ReadWrite => StorageAccess::LOAD | StorageAccess::STORE,
        };
        assert_eq!(*space, AddressSpace::Storage { access }, "{what}");
        let TypeInner::Array { base, .. } = module.types[*ty].inner else { panic!("{what}: is no array") };
        let wanted = scalar(binding.dtype);
        let vector = TypeInner::Vector { size: VectorSize::Quad, scalar: wanted };
        let inner = &module.types[base].inner;
        assert!(*inner == TypeInner::Scalar(wanted) || *inner == vector, "{what}: {inner:?}");
    }
}

fn check_arguments(entry: &Entry, module: &Module, found: &BTreeMap<u32, (Handle<Type>, AddressSpace)>) {
    let index = entry.bindings.len() as u32;
    let (ty, space) = found.get(&index).unwrap_or_else(|| panic!("{}: uses no arguments", entry.name));
    assert_eq!(*space, AddressSpace::Uniform, "{}", entry.name);
    let TypeInner::Struct { members, .. } = &module.types[*ty].inner else {
        panic!("{}: arguments are no struct", entry.name)
    };
    let given: Vec<_> =
        members.iter().map(|m| (m.name.as_deref(), m.offset, &module.types[m.ty].inner)).collect();
    let inner = |dtype| TypeInner::Scalar(scalar(dtype));
    let types: Vec<_> = entry.arguments.iter().map(|field| inner(field.dtype)).collect();
    let fields = entry.arguments.iter().zip(&types).enumerate();
    let wanted: Vec<_> = fields.map(|(i, (field, ty))| (Some(field.name), i as u32 * 4, ty)).collect();
    assert_eq!(given, wanted, "{}", entry.name);
}

#[test]
fn every_source_is_valid_and_has_the_bindings_and_arguments_of_its_kernel() {
    for (kernel, prelude) in ALL.iter().flat_map(|kernel| PRELUDES.map(|prelude| (kernel, prelude))) {
        let (module, info) = checked(kernel, prelude);
        assert_eq!(module.entry_points.len(), kernel.entries.len(), "{}", kernel.name);
        for entry in kernel.entries {
            let found = bindings(&module, &info, &entry.name.replace('.', "_"));
            assert_eq!(found.len(), entry.bindings.len() + 1, "{}", entry.name);
            check_buffers(entry, &module, &found);
            check_arguments(entry, &module, &found);
        }
    }
}
