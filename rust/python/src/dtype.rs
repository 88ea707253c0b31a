//! The types of elements.

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
