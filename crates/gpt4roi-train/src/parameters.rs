//! The tensors of a stage: taken from checkpoints or drawn afresh, trainable or frozen.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::{Device, Tensor, Var};
use gpt4roi::{
    layers::Matrix,
    low_rank::LowRank,
    weights::{TensorSource, WeightsError, WeightsResult},
};

use crate::{
    adapter::{Base, Factors, is_factor},
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
    /// Where its value came from.
    pub origin: Origin,
}

/// Where the first value of a parameter came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A checkpoint.
    Taken,
    /// The model that an adapter is trained beside.
    Base,
    /// It was drawn.
    Drawn,
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
    /// What does not learn, beside an adapter.
    base: Option<Base>,
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
    ) -> Self {
        let (taken, asked) = (Mutex::new(taken), Mutex::new(BTreeMap::new()));
        Self { trainable, taken, initializer, device: device.clone(), base: None, asked }
    }

    /// The same beside a model that stays as it is: its matrices are handed out as it has them, with changes that
    /// learn, and its tensors are the first values of what else learns.
    pub(crate) fn beside(self, base: Base) -> Self {
        Self { base: Some(base), ..self }
    }

    /// The trainable parameters, by name.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.asked().iter().filter_map(|(name, p)| Some((name.clone(), p.var.clone()?))).collect()
    }

    /// What a checkpoint holds: everything that was asked for, by name, but for what another model has as well.
    pub fn own(&self) -> BTreeMap<String, Tensor> {
        let is_own = |parameter: &Parameter| parameter.var.is_some() || parameter.origin != Origin::Base;
        let own = self.all().into_iter().filter(|(_, parameter)| is_own(parameter));
        own.map(|(name, parameter)| (name, parameter.tensor)).collect()
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

    fn is_taken(&self, name: &str) -> bool {
        self.taken().contains_key(name)
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<String, Tensor>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer whose change was taken from a source, and that nothing has asked for.
    pub(crate) fn left_change(&self) -> Option<String> {
        let taken = self.taken();
        let factor = taken.keys().find(|name| is_factor(name))?;
        Some(factor.split(".lora_").next().unwrap_or_default().to_owned())
    }

    fn learns(&self, name: &str) -> bool {
        begins(name, &self.trainable) || self.base.is_some() && is_factor(name)
    }

    fn change(&self, factors: &Factors, [output, input]: [usize; 2]) -> WeightsResult<LowRank> {
        let Factors { layer, rank, scale } = factors;
        let down = self.tensor(&format!("{layer}.lora_A.weight"), &[*rank, input])?;
        let up = self.tensor(&format!("{layer}.lora_B.weight"), &[output, *rank])?;
        Ok(LowRank { down, up, scale: *scale })
    }

    fn make(&self, name: &str, shape: &[usize]) -> WeightsResult<Parameter> {
        let failed = |source| WeightsError::Tensor { name: name.into(), source };
        let taken = self.taken().remove(name);
        let (tensor, origin) = match taken {
            Some(tensor) if tensor.dims() == shape => (tensor.to_device(&self.device).map_err(failed)?, Origin::Taken),
            Some(tensor) => {
                return Err(WeightsError::Shape {
                    name: name.into(),
                    expected: shape.into(),
                    got: tensor.dims().into(),
                });
            }
            None => match self.base.as_ref().map_or(Ok(None), |base| base.tensor(name, shape))? {
                Some(tensor) => (tensor, Origin::Base),
                None => (self.initializer.tensor(name, shape, &self.device).map_err(failed)?, Origin::Drawn),
            },
        };
        if !self.learns(name) {
            return Ok(Parameter { tensor, var: None, origin });
        }
        // A copy, so that a variable never shares its storage with a tensor held elsewhere.
        let var = Var::from_tensor(&tensor.copy().map_err(failed)?).map_err(failed)?;
        Ok(Parameter { tensor: var.as_tensor().clone(), var: Some(var), origin })
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

    fn matrix(&self, name: &str, shape: [usize; 2]) -> WeightsResult<Matrix> {
        let kept = match &self.base {
            Some(base) if !self.learns(name) && !self.is_taken(name) => {
                base.matrix(name, shape)?.map(|matrix| (matrix, base.factors(name)))
            }
            _ => None,
        };
        match kept {
            None => self.tensor(name, &shape).map(Matrix::Dense),
            Some((matrix, None)) => Ok(matrix),
            Some((matrix, Some(factors))) => Ok(matrix.changed_by(self.change(&factors, shape)?)),
        }
    }
}

fn check_drawn(asked: &BTreeMap<String, Parameter>, stage: &StageConfig) -> Result<()> {
    let from_nothing = stage.init.from.is_empty() && stage.adapter.is_none();
    let drawn_anyway = |name: &str| stage.adapter.is_some() && is_factor(name);
    let named = |name: &str, p: &Parameter| {
        from_nothing && p.var.is_some() || drawn_anyway(name) || begins(name, &stage.init.fresh)
    };
    let drawn = asked.iter().filter(|(name, p)| p.origin == Origin::Drawn && !named(name, p));
    let drawn: Vec<_> = drawn.map(|(name, _)| name).collect();
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

    fn parameters(trainable: &[&str], taken: &[&str]) -> Parameters {
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
