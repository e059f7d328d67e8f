//! The tensors of a stage: taken from checkpoints or drawn afresh, trainable or frozen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor, Var};
use gpt4roi::weights::{TensorSource, WeightsError, WeightsResult};

use crate::{
    config::StageConfig,
    error::{Result, TrainError},
    init::Initializer,
};

/// A parameter that the network asked for.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its value; the network holds the same storage.
    pub tensor: Tensor,
    /// The handle that changes it; absent when frozen.
    pub var: Option<Var>,
    /// Whether it was drawn, not taken from a checkpoint.
    pub fresh: bool,
}

/// Hands the network its tensors and remembers which it asked for.
///
/// The network is built once. A trainable tensor is a variable, changed in place.
#[derive(Debug)]
pub struct Parameters {
    trainable: Vec<String>,
    /// What nobody has asked for yet: nothing is held twice.
    taken: Mutex<BTreeMap<String, Tensor>>,
    initializer: Initializer,
    device: Device,
    asked: Mutex<BTreeMap<String, Parameter>>,
}

impl Parameters {
    /// Parameters whose name begins with one of `trainable` become variables. Values come from
    /// `taken` where it has the name, else from the initializer.
    pub fn new(
        trainable: Vec<String>,
        taken: BTreeMap<String, Tensor>,
        initializer: Initializer,
        device: &Device,
    ) -> Arc<Self> {
        let (taken, asked) = (Mutex::new(taken), Mutex::new(BTreeMap::new()));
        Arc::new(Self { trainable, taken, initializer, device: device.clone(), asked })
    }

    /// The trainable parameters, by name.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.asked().iter().filter_map(|(name, p)| Some((name.clone(), p.var.clone()?))).collect()
    }

    /// Everything that was asked for, by name.
    pub fn all(&self) -> BTreeMap<String, Parameter> {
        self.asked().clone()
    }

    /// Refuses beginnings of names that no parameter has, and parameters that were drawn although nobody asked for
    /// that. A model that starts from nothing draws what learns; beside a checkpoint, and for what stays frozen,
    /// `init.fresh` has to name it.
    ///
    /// # Errors
    /// Names the field and the beginning, or the first parameter.
    pub fn check(&self, stage: &StageConfig) -> Result<()> {
        let asked = self.asked();
        let all = || asked.keys().map(String::as_str);
        let learning = || asked.iter().filter(|(_, p)| p.var.is_some()).map(|(name, _)| name.as_str());
        check_prefixes(&stage.name, "trainable", &stage.trainable, all)?;
        check_prefixes(&stage.name, "init.fresh", &stage.init.fresh, all)?;
        let groups = stage.optimizer.groups.iter().map(|group| &group.prefix);
        check_prefixes(&stage.name, "optimizer.groups", groups, learning)?;
        check_drawn(&asked, stage)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<String, Parameter>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self, name: &str, shape: &[usize]) -> WeightsResult<Parameter> {
        let failed = |source| WeightsError::Tensor { name: name.into(), source };
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let (tensor, fresh) = match taken {
            Some(tensor) if tensor.dims() == shape => (tensor.to_device(&self.device).map_err(failed)?, false),
            Some(tensor) => {
                return Err(WeightsError::Shape {
                    name: name.into(),
                    expected: shape.into(),
                    got: tensor.dims().into(),
                });
            }
            None => (self.initializer.tensor(name, shape, &self.device).map_err(failed)?, true),
        };
        if !begins(name, &self.trainable) {
            return Ok(Parameter { tensor, var: None, fresh });
        }
        // A copy, so that a variable never shares its storage with a tensor held elsewhere.
        let var = Var::from_tensor(&tensor.copy().map_err(failed)?).map_err(failed)?;
        Ok(Parameter { tensor: var.as_tensor().clone(), var: Some(var), fresh })
    }
}

impl TensorSource for Parameters {
    fn tensor(&self, name: &str, shape: &[usize]) -> WeightsResult<Tensor> {
        if let Some(parameter) = self.asked().get(name) {
            return Ok(parameter.tensor.clone());
        }
        let parameter = self.make(name, shape)?;
        let tensor = parameter.tensor.clone();
        self.asked().insert(name.into(), parameter);
        Ok(tensor)
    }
}

fn check_drawn(asked: &BTreeMap<String, Parameter>, stage: &StageConfig) -> Result<()> {
    let from_nothing = stage.init.from.is_empty();
    let named = |name: &str, p: &Parameter| from_nothing && p.var.is_some() || begins(name, &stage.init.fresh);
    let drawn: Vec<_> = asked.iter().filter(|(name, p)| p.fresh && !named(name, p)).map(|(name, _)| name).collect();
    match drawn.first() {
        Some(first) => {
            Err(TrainError::Drawn { stage: stage.name.clone(), count: drawn.len(), first: first.to_string() })
        }
        None => Ok(()),
    }
}

/// Refuses the first of `prefixes` that none of `names` begins with: it is misspelt, or meant for another model.
pub(crate) fn check_prefixes<'a, Names: Iterator<Item = &'a str>>(
    stage: &str,
    field: &str,
    prefixes: impl IntoIterator<Item = &'a String>,
    names: impl Fn() -> Names,
) -> Result<()> {
    match prefixes.into_iter().find(|prefix| !names().any(|name| name.starts_with(prefix.as_str()))) {
        Some(prefix) => Err(TrainError::Value {
            stage: stage.into(),
            field: field.into(),
            expected: "beginnings of parameter names".into(),
            got: format!("`{prefix}`, with which none of them begins"),
        }),
        None => Ok(()),
    }
}

/// Whether `name` begins with one of `prefixes`.
pub(crate) fn begins(name: &str, prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Source, init::InitChoices, optimizer::Group, tiny};

    fn parameters(trainable: &[&str], taken: &[&str]) -> Arc<Parameters> {
        let initializer = Initializer::new(1, &gpt4roi::Config::gpt4roi_7b(), InitChoices::default());
        let value = Tensor::full(3f32, 2, &Device::Cpu).unwrap();
        let taken = taken.iter().map(|name| (name.to_string(), value.clone())).collect();
        Parameters::new(trainable.iter().map(|name| name.to_string()).collect(), taken, initializer, &Device::Cpu)
    }

    #[test]
    fn the_network_sees_what_the_optimizer_sets() {
        let parameters = parameters(&["a."], &["a.x"]);
        let tensor = parameters.tensor("a.x", &[2]).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [3.0, 3.0]);
        let (name, var) = parameters.trainable().remove(0);
        assert_eq!(name, "a.x");
        var.set(&Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(parameters.tensor("a.x", &[2]).unwrap().id(), tensor.id());
    }

    #[test]
    fn other_shapes_are_refused() {
        let error = parameters(&[], &["a.x"]).tensor("a.x", &[3]).unwrap_err();
        assert!(matches!(error, WeightsError::Shape { .. }), "{error}");
    }

    fn stage(from: &[&str], fresh: &[&str], groups: &[&str]) -> StageConfig {
        let mut stage = tiny::stage(tiny::patches(), &["a."]);
        stage.init.from = from.iter().map(|path| Source { path: path.into(), take: Vec::new() }).collect();
        stage.init.fresh = fresh.iter().map(|prefix| prefix.to_string()).collect();
        let group = |prefix: &&str| Group { prefix: prefix.to_string(), lr_scale: 0.5, weight_decay: None, rule: None };
        stage.optimizer.groups = groups.iter().map(group).collect();
        stage
    }

    #[test]
    fn what_is_drawn_unasked_is_refused() {
        let parameters = parameters(&["a."], &["b.taken"]);
        for name in ["a.fresh", "b.taken", "b.fresh"] {
            parameters.tensor(name, &[2]).unwrap();
        }
        for (from, fresh, expected) in [
            (&[][..], &[][..], Some((1, "b.fresh"))), // from nothing, but b stays frozen
            (&[], &["b."], None),
            (&["model"], &[], Some((2, "a.fresh"))), // a was to go on from the checkpoint
            (&["model"], &["b."], Some((1, "a.fresh"))),
            (&["model"], &["a.", "b."], None),
        ] {
            let got = parameters.check(&stage(from, fresh, &[])).err();
            let got = got.map(|error| match error {
                TrainError::Drawn { count, first, .. } => (count, first),
                error => panic!("{error}"),
            });
            assert_eq!(got, expected.map(|(count, first)| (count, first.to_owned())), "{from:?}, {fresh:?}");
        }
    }

    #[test]
    fn a_beginning_that_no_parameter_has_is_refused() {
        for (trainable, fresh, groups, expected) in [
            (&["a.", "c."][..], &["b."][..], &[][..], Some(("trainable", "c."))),
            (&["a."], &["b.", "d."], &[], Some(("init.fresh", "d."))),
            (&["a."], &["b."], &["a.x", "a.y"], Some(("optimizer.groups", "a.y"))),
            (&["a."], &["b."], &["b."], Some(("optimizer.groups", "b."))), // there, but it does not learn
            (&["a."], &["b."], &["a.x"], None),
        ] {
            let parameters = parameters(trainable, &[]);
            for name in ["a.x", "b.x"] {
                parameters.tensor(name, &[2]).unwrap();
            }
            let stage = StageConfig {
                trainable: trainable.iter().map(|prefix| prefix.to_string()).collect(),
                ..stage(&[], fresh, groups)
            };
            let got = parameters.check(&stage).err().map(|error| error.to_string());
            let found = |(field, prefix)| {
                got.as_ref().is_some_and(|e| {
                    e.contains(&format!("{field}: expected beginnings of parameter names, got `{prefix}`"))
                })
            };
            assert_eq!(expected.is_some(), got.is_some(), "{got:?}");
            assert!(expected.is_none_or(found), "{got:?}, not {expected:?}");
        }
    }
}
