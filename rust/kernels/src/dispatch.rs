//! Which of the CPU's vector instructions to use: chosen once, at run time.

use std::sync::OnceLock;

use fearless_simd::Level;

use crate::Error;

/// Runs an expression with `$simd` for the token of a tier, in a function that has its CPU features.
///
/// `fearless_simd::dispatch!` does this for SSE 4.2 too, which would cost a fifth of the library and has no user: a CPU
/// with it but without AVX2 takes the baseline.
macro_rules! dispatch {
    ($level:expr, $simd:ident => $body:expr) => {
        match $level {
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            fearless_simd::Level::Avx512($simd) => $crate::dispatch::with_features!($simd, $body),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            fearless_simd::Level::Avx2($simd) => $crate::dispatch::with_features!($simd, $body),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            fearless_simd::Level::Sse2($simd) => $crate::dispatch::with_features!($simd, $body),
            #[cfg(target_arch = "aarch64")]
            fearless_simd::Level::Neon($simd) => $crate::dispatch::with_features!($simd, $body),
            fearless_simd::Level::Fallback($simd) => $crate::dispatch::with_features!($simd, $body),
            _ => unreachable!("`level` gives no other"),
        }
    };
}

macro_rules! with_features {
    ($simd:ident, $body:expr) => {
        fearless_simd::Simd::vectorize(
            $simd,
            #[inline(always)]
            || $body,
        )
    };
}

pub(crate) use {dispatch, with_features};

/// The environment variable that forces a tier.
pub const VARIABLE: &str = "CID_SIMD";

/// The tiers that it names.
fn tiers() -> impl Iterator<Item = &'static str> {
    ["avx512", "avx2", "baseline", "fallback"].into_iter()
}

/// The tier in use: the best that the CPU has, or the one that `CID_SIMD` names.
///
/// # Errors
///
/// Where `CID_SIMD` names no tier, or one that this CPU lacks.
pub fn level() -> Result<Level, Error> {
    #[cfg(test)]
    if let Some(level) = tests::FORCED.get() {
        return Ok(level);
    }
    static LEVEL: OnceLock<Result<Level, Error>> = OnceLock::new();
    LEVEL.get_or_init(choose).clone()
}

/// The name of a tier, as `CID_SIMD` spells it where it can be forced.
pub fn name(level: Level) -> &'static str {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    match level {
        Level::Avx512(_) => return "avx512",
        Level::Avx2(_) => return "avx2",
        _ => {}
    }
    if level.is_fallback() { "fallback" } else { "baseline" }
}

fn choose() -> Result<Level, Error> {
    match std::env::var_os(VARIABLE) {
        None => Ok(best()),
        Some(forced) => {
            let forced = forced.to_string_lossy();
            parse(&forced).ok_or_else(|| {
                let exists = tiers().any(|tier| tier == forced);
                let accepted = tiers().filter(|tier| parse(tier).is_some()).collect();
                Error::Tier { forced: forced.into_owned(), exists, accepted }
            })
        }
    }
}

/// The best that the CPU has.
fn best() -> Level {
    tiers().find_map(parse).unwrap_or_else(Level::baseline)
}

/// The named tier, if there is one of that name and the CPU has it.
fn parse(tier: &str) -> Option<Level> {
    match tier {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx512" => Level::new().as_avx512().map(Level::Avx512),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx2" => Level::new().as_avx2().map(Level::Avx2),
        "baseline" => Some(Level::baseline()),
        "fallback" => Some(Level::fallback()),
        _ => None,
    }
}

/// Every tier that the CPU has, for the tests.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    tiers().filter_map(parse).collect()
}

#[cfg(test)]
pub(crate) use tests::on_every_level;

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    /// Runs a test once for each tier that the CPU has.
    pub(crate) fn on_every_level(test: impl Fn()) {
        for level in levels() {
            FORCED.set(Some(level));
            test();
        }
        FORCED.set(None);
    }

    #[test]
    fn tiers_have_names() {
        for tier in tiers() {
            assert!(parse(tier).is_none_or(|level| name(level) == tier));
        }
        assert!(parse("AVX2").is_none() && parse("").is_none());
    }
}
