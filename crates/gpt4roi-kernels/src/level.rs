//! Which vector instructions the processor has, for kernels that name their registers.

use pulp::{Scalar, Simd, WithSimd};

/// A set of vector instructions that this processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    /// One value at a time.
    Scalar,
    /// AVX2 and fused multiply-add: 16 registers of 8 values.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// AVX-512: 32 registers of 16 values.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// NEON: 32 registers of 4 values.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
}

impl Level {
    /// The widest one.
    pub(crate) fn best() -> Self {
        Self::all().last().unwrap_or(Self::Scalar)
    }

    /// All of them, the widest last.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let vector = [pulp::x86::V3::try_new().map(Self::Avx2), pulp::x86::V4::try_new().map(Self::Avx512)];
        #[cfg(target_arch = "aarch64")]
        let vector = [pulp::aarch64::Neon::try_new().map(Self::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let vector = [None];
        std::iter::once(Self::Scalar).chain(vector.into_iter().flatten())
    }

    /// Runs work compiled for these instructions. It pays for work of a microsecond and more.
    pub(crate) fn run<Work: WithSimd>(self, work: Work) -> Work::Output {
        match self {
            Self::Scalar => Simd::vectorize(Scalar, work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => Simd::vectorize(simd, work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => Simd::vectorize(simd, work),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => Simd::vectorize(simd, work),
        }
    }
}
