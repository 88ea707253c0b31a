//! The types of elements: PyTorch's, and the Rust type that each is.

/// An element type that a tensor may have here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DType {
    /// `torch.float32`
    F32,
    /// `torch.float64`
    F64,
    /// `torch.bfloat16`
    BF16,
    /// `torch.float16`
    F16,
    /// `torch.int64`
    I64,
}

/// The types of logits and features.
pub const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::BF16, DType::F16];

impl DType {
    /// As Python writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "torch.float32",
            Self::F64 => "torch.float64",
            Self::BF16 => "torch.bfloat16",
            Self::F16 => "torch.float16",
            Self::I64 => "torch.int64",
        }
    }

    /// The type that a float type is computed in.
    pub fn real(self) -> Self {
        match self {
            Self::BF16 | Self::F16 => Self::F32,
            _ => self,
        }
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::BF16 | Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// The types of a teacher that the kernels take beside a student's.
    pub fn beside(self) -> &'static [Self] {
        match self {
            Self::F32 => &[Self::F32, Self::BF16, Self::F16],
            Self::F64 => &[Self::F64],
            Self::BF16 => &[Self::BF16],
            Self::F16 => &[Self::F16],
            Self::I64 => &[],
        }
    }
}

/// Runs an expression with `$element` naming the Rust type of a checked float tensor.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $call:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $element = f32;
                $call
            }
            $crate::dtype::DType::F64 => {
                type $element = f64;
                $call
            }
            $crate::dtype::DType::BF16 => {
                type $element = cid_kernels::Bf16;
                $call
            }
            $crate::dtype::DType::F16 => {
                type $element = cid_kernels::F16;
                $call
            }
            $crate::dtype::DType::I64 => unreachable!("floats alone were accepted"),
        }
    };
}

/// As `with_element`, of the student's type and the teacher's: the same, or either half beside an `f32`.
macro_rules! with_elements {
    ($dtype:expr, $teacher:expr, $element:ident, $other:ident => $call:expr) => {
        match ($dtype, $teacher) {
            ($crate::dtype::DType::F32, $crate::dtype::DType::BF16) => {
                type $element = f32;
                type $other = cid_kernels::Bf16;
                $call
            }
            ($crate::dtype::DType::F32, $crate::dtype::DType::F16) => {
                type $element = f32;
                type $other = cid_kernels::F16;
                $call
            }
            (dtype, _) => $crate::dtype::with_element!(dtype, $element => {
                type $other = $element;
                $call
            }),
        }
    };
}

pub(crate) use {with_element, with_elements};
