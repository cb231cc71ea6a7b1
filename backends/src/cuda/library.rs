//! cuBLASLt: products with a bias and some activations behind them.
//!
//! Its matrices are column-major, so it is asked for outputᵀ = rightᵀ·leftᵀ: the bias then runs down its columns, as it
//! wants it.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;
use motley_kernels::gelu;

use super::driver::Driver;
use super::product::{Factor, Product};
use crate::open::Precision;

/// What NVIDIA advises for Hopper; older devices need less.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Shapes whose algorithm is remembered. Packed batches have many numbers of rows; beyond this all are forgotten.
const PLANS_MAX: usize = 4096;

pub(super) fn is_there() -> bool {
    // SAFETY: opens the library by name and closes it again; it has no other effect.
    unsafe { sys::is_culib_present() }
}

pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    plans: Mutex<BTreeMap<Key, Option<Plan>>>,
    workspace: Mutex<Option<u64>>,
}

/// What the choice of an algorithm depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    shape: [usize; 3],
    strides: [usize; 3],
    batches: [usize; 4],
    transposed: [bool; 2],
    is_f32: bool,
    has_bias: bool,
    activation: u32,
    accumulates: bool,
    is_aligned: bool,
}

struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: cuBLASLt's handle and descriptions may be used from any thread; a plan is used under the lock alone.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

type Status = std::result::Result<(), result::CublasError>;

impl Library {
    /// Nothing if the library is not on this machine or does not start.
    pub fn open() -> Option<Self> {
        if !is_there() {
            return None;
        }
        let handle = result::create_handle().ok()?;
        Some(Library { handle, plans: Mutex::default(), workspace: Mutex::default() })
    }

    /// False where it has no algorithm.
    ///
    /// # Errors
    /// The library's or the driver's words.
    pub fn product(&self, product: &Product, stream: CUstream, driver: &dyn Driver) -> Result<bool, String> {
        // Its GELU is the one by tanh, and takes that to eleven bits: far off where the two halves of it cancel.
        let has_activation = matches!(product.activation, None | Some(gelu::Kind::Relu));
        if product.shape[2] == 0 || !has_activation {
            return Ok(false);
        }
        let workspace = self.workspace(driver)?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if plans.len() >= PLANS_MAX {
            plans.clear();
        }
        let plan = plans.entry(Key::of(product)).or_insert_with(|| self.plan(product).ok());
        let Some(plan) = plan else { return Ok(false) };
        self.run(plan, product, workspace, stream).map_err(|error| format!("{:?}", error.0))?;
        Ok(true)
    }

    fn workspace(&self, driver: &dyn Driver) -> Result<u64, String> {
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        if workspace.is_none() {
            *workspace = driver.allocate(WORKSPACE_BYTES).map_err(|error| error.to_string())?;
        }
        workspace.ok_or_else(|| "no memory for its workspace".to_owned())
    }

    fn plan(&self, product: &Product) -> std::result::Result<Plan, result::CublasError> {
        let [m, n, k] = product.shape.map(|size| size as u64);
        let dtype = match product.precision {
            Precision::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Precision::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let description = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        )?;
        // The stored matrix, seen in columns: the sizes of the transpose of what is stored in rows.
        let layout = |rows: u64, columns: u64, stride: usize, batch: usize| {
            let layout = result::create_matrix_layout(dtype, rows, columns, stride as i64)?;
            self.batch(layout, product.batch, batch)?;
            Ok(layout)
        };
        let stored = |factor: &Factor, rows: u64, columns: u64| {
            let (rows, columns) = if factor.transposed { (columns, rows) } else { (rows, columns) };
            layout(rows, columns, factor.stride, factor.batch)
        };
        let right = stored(&product.right, n, k)?;
        let left = stored(&product.left, k, m)?;
        let output = layout(n, m, product.output_stride, product.output_batch)?;
        let mut plan = Plan {
            description,
            layouts: [right, left, output],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let operation = |transposed: bool| i32::from(transposed);
        describe(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(product.right.transposed))?;
        describe(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(product.left.transposed))?;
        describe(description, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue(product) as u32)?;
        if let Some(bias) = product.bias {
            describe(description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        plan.algorithm = self.algorithm(&plan, product)?;
        Ok(plan)
    }

    fn batch(&self, layout: sys::cublasLtMatrixLayout_t, count: usize, stride: usize) -> Status {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let (count, stride) = (count as i32, stride as i64);
        // SAFETY: the layout is alive, and the values have the types that the attributes want.
        unsafe {
            result::set_matrix_layout_attribute(
                layout,
                Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                std::ptr::from_ref(&count).cast::<c_void>(),
                size_of_val(&count),
            )?;
            result::set_matrix_layout_attribute(
                layout,
                Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                std::ptr::from_ref(&stride).cast::<c_void>(),
                size_of_val(&stride),
            )
        }
    }

    fn algorithm(
        &self,
        plan: &Plan,
        product: &Product,
    ) -> std::result::Result<sys::cublasLtMatmulAlgo_t, result::CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref()?;
        let alignment: u32 = if is_aligned(product) { 16 } else { 4 };
        let prefer = |attribute, value: *const c_void, bytes| {
            // SAFETY: the preference is alive, and the values have the types that the attributes want.
            unsafe { result::set_matmul_pref_attribute(preference, attribute, value, bytes) }
        };
        let workspace = WORKSPACE_BYTES;
        // Parts of a sum are added in f32, never in the output's 16 bits.
        let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let chosen = prefer(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            std::ptr::from_ref(&workspace).cast::<c_void>(),
            size_of::<usize>(),
        )
        .and_then(|()| {
            prefer(
                Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                std::ptr::from_ref(&reductions).cast::<c_void>(),
                size_of::<u32>(),
            )
        })
        .and_then(|()| {
            for attribute in [
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                prefer(attribute, std::ptr::from_ref(&alignment).cast::<c_void>(), size_of::<u32>())?;
            }
            let [a, b, d] = plan.layouts;
            // SAFETY: all of them are alive.
            unsafe {
                result::get_matmul_algo_heuristic(self.handle, plan.description, a, b, d, d, preference)
            }
        });
        // SAFETY: created above, destroyed once.
        let _leaked = unsafe { result::destroy_matmul_pref(preference) };
        Ok(chosen?.algo)
    }

    fn run(&self, plan: &Plan, product: &Product, workspace: u64, stream: CUstream) -> Status {
        if let Some(bias) = product.bias {
            use sys::cublasLtMatmulDescAttributes_t as Attribute;
            describe(plan.description, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let [a, b, d] = plan.layouts;
        let output = product.output as *mut c_void;
        // SAFETY: the caller owns the matrices; layouts and algorithm were made for them.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                std::ptr::from_ref(&product.alpha).cast::<c_void>(),
                std::ptr::from_ref(&product.beta).cast::<c_void>(),
                product.right.address as *const c_void,
                a,
                product.left.address as *const c_void,
                b,
                output,
                d,
                output,
                d,
                &plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: created in `open`, destroyed once. The workspace lies in the device's pool, which is trimmed.
        let _leaked = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: created in `plan`, destroyed once.
        unsafe {
            let _leaked = result::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _leaked = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Key {
    fn of(product: &Product) -> Self {
        Key {
            shape: product.shape,
            strides: [product.left.stride, product.right.stride, product.output_stride],
            batches: [product.batch, product.left.batch, product.right.batch, product.output_batch],
            transposed: [product.left.transposed, product.right.transposed],
            is_f32: product.precision == Precision::F32,
            has_bias: product.bias.is_some(),
            activation: product.activation.map_or(3, |kind| kind as u32),
            accumulates: product.beta != 0.0,
            is_aligned: is_aligned(product),
        }
    }
}

/// Whether every matrix starts at a multiple of 16 bytes.
fn is_aligned(product: &Product) -> bool {
    [product.left.address, product.right.address, product.output].iter().all(|address| address % 16 == 0)
}

fn epilogue(product: &Product) -> sys::cublasLtEpilogue_t {
    use sys::cublasLtEpilogue_t as Epilogue;
    match (product.bias.is_some(), product.activation.is_some()) {
        (false, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
        (true, false) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
        (false, true) => Epilogue::CUBLASLT_EPILOGUE_RELU,
        (true, true) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
    }
}

fn describe<T: Copy>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: T,
) -> Status {
    // SAFETY: the description is alive, and callers pass the type that the attribute wants.
    unsafe {
        result::set_matmul_desc_attribute(
            description,
            attribute,
            std::ptr::from_ref(&value).cast::<c_void>(),
            size_of::<T>(),
        )
    }
}
