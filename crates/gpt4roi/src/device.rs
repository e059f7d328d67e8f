//! Where to compute: on the CPU, or on a GPU that the program was built for.

use std::{fmt, str::FromStr};

use candle_core::{Device, Tensor};

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The first GPU that the program was built for and that works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// An Apple GPU, by its number.
    Metal(usize),
}

/// A device that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program has no code for such devices.
    #[error("{choice}: this program was built without it (cargo feature `{feature}`)")]
    NotBuilt {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the build lacked.
        feature: &'static str,
    },
    /// There is none, or it does not compute.
    #[error("{choice}: {source}")]
    Fails {
        /// What was asked for.
        choice: DeviceChoice,
        /// Why.
        source: candle_core::Error,
    },
    /// A text that names no device.
    #[error("expected auto, cpu, cuda, cuda:N or metal, got {0}")]
    Unknown(String),
}

impl DeviceChoice {
    /// Opens the device, and computes a sum on it to see whether it works. A device that was asked for by name is this
    /// one or an error; `Auto` tells `passed_over` about each GPU that does not work.
    ///
    /// # Errors
    /// If there is no such device, or the program was built without it.
    pub fn open(self, mut passed_over: impl FnMut(&DeviceError)) -> Result<Device, DeviceError> {
        if self != Self::Auto {
            return self.open_named();
        }
        for gpu in Self::built_for() {
            match gpu.open_named() {
                Ok(device) => return Ok(device),
                Err(error) => passed_over(&error),
            }
        }
        Ok(Device::Cpu)
    }

    /// What `Auto` tries, in this order.
    fn built_for() -> impl Iterator<Item = Self> {
        let cuda = cfg!(feature = "cuda").then_some(Self::Cuda(0));
        let metal = cfg!(feature = "metal").then_some(Self::Metal(0));
        cuda.into_iter().chain(metal)
    }

    fn open_named(self) -> Result<Device, DeviceError> {
        let device = match self {
            Self::Auto | Self::Cpu => return Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => return Err(self.not_built("cuda")),
            Self::Metal(_) if !cfg!(feature = "metal") => return Err(self.not_built("metal")),
            Self::Cuda(index) => Device::new_cuda(index),
            Self::Metal(index) => Device::new_metal(index),
        };
        device.and_then(computing).map_err(|error| DeviceError::Fails { choice: self, source: reason(error) })
    }

    fn not_built(self, feature: &'static str) -> DeviceError {
        DeviceError::NotBuilt { choice: self, feature }
    }
}

/// The device, if it adds right: code for another architecture loads, and fails only when it runs.
fn computing(device: Device) -> candle_core::Result<Device> {
    let sum = Tensor::new(&[1f32, 2.0], &device)?.sum_all()?.to_scalar::<f32>()?;
    if sum != 3.0 {
        candle_core::bail!("1 + 2 is {sum}")
    }
    Ok(device)
}

/// Where in the engine it happened, which it tells if `RUST_BACKTRACE` is set, helps nobody to choose a device.
fn reason(error: candle_core::Error) -> candle_core::Error {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => reason(*inner),
        error => error,
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Metal(index) => write!(f, "metal:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let index: usize = index.parse().map_err(|_| unknown())?;
        match kind {
            "auto" if kind == text => Ok(Self::Auto),
            "cpu" if kind == text => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(index)),
            "metal" => Ok(Self::Metal(index)),
            _ => Err(unknown()),
        }
    }
}

/// How a device is called, as [`DeviceChoice`] names it.
pub fn name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_without_a_backtrace() {
        let backtrace = || Box::new(std::backtrace::Backtrace::force_capture());
        let traced = |inner| candle_core::Error::WithBacktrace { inner: Box::new(inner), backtrace: backtrace() };
        let error = traced(traced(candle_core::Error::Msg("no device".into())));
        assert!(error.to_string().lines().count() > 2);
        assert_eq!(reason(error).to_string(), "no device");
    }

    #[test]
    fn devices_are_named_as_they_are_shown() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("metal:0", DeviceChoice::Metal(0)),
        ] {
            assert_eq!((text.parse().ok(), choice.to_string().as_str()), (Some(choice), text));
        }
        assert_eq!("cuda".parse().ok(), Some(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cpu:1", "auto:0", "CUDA"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_device_that_was_named_is_never_replaced() {
        let refused = |choice: DeviceChoice| choice.open(|_| panic!("nothing is passed over")).unwrap_err().to_string();
        if !cfg!(feature = "cuda") {
            let message = "cuda:7: this program was built without it (cargo feature `cuda`)";
            assert_eq!(refused(DeviceChoice::Cuda(7)), message);
        }
        if !cfg!(feature = "metal") {
            assert!(refused(DeviceChoice::Metal(0)).contains("`metal`"));
        }
        assert!(DeviceChoice::Cpu.open(|_| ()).unwrap().is_cpu());
    }

    #[test]
    fn without_a_gpu_auto_is_the_cpu_and_says_what_was_passed_over() {
        let mut passed_over = 0;
        let device = DeviceChoice::Auto.open(|_| passed_over += 1).unwrap();
        if device.is_cpu() {
            assert_eq!(passed_over, DeviceChoice::built_for().count());
        }
    }

    #[test]
    fn a_device_has_to_add_right() {
        assert!(computing(Device::Cpu).unwrap().is_cpu());
    }
}
