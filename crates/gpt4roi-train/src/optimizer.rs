//! AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Result, TrainError},
    muon::{self, Muon},
};

/// What an optimizer is told by a stage file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The rule for vectors, embeddings and heads, and for matrices if there is no `muon`.
    pub adamw: AdamW,
    /// The rule for hidden matrices.
    #[serde(default)]
    pub muon: Option<Muon>,
    /// Exceptions; the first whose `prefix` a name begins with holds.
    #[serde(default)]
    pub groups: Vec<Group>,
}

/// An exception for some parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The beginning of the parameters' names; some that learn must have it.
    pub prefix: String,
    /// Multiplies the rate.
    #[serde(default = "one")]
    pub lr_scale: f64,
    /// Replaces the weight decay.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// Replaces the choice between the two rules.
    #[serde(default)]
    pub rule: Option<Rule>,
}

/// Which rule a parameter follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Momentum made orthogonal.
    Muon,
}

/// Adam with decoupled weight decay (Loshchilov and Hutter, 2019), step for step as PyTorch's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamW {
    /// The full learning rate.
    pub lr: f64,
    /// Decay of the mean and of the mean square of the gradient.
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// Added to the root of the mean square.
    #[serde(default = "eps")]
    pub eps: f64,
    /// Decay of matrices and larger tensors.
    #[serde(default)]
    pub weight_decay: f64,
    /// Decay of vectors: biases and the weights of norms.
    #[serde(default)]
    pub vector_weight_decay: f64,
}

fn one() -> f64 {
    1.0
}

fn betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn eps() -> f64 {
    1e-8
}

impl AdamW {
    /// Changes `values` in place; `updates` counts this update, from 1.
    pub fn update(&self, values: &mut [f32], gradient: &[f32], moments: &mut Moments, updates: u64, rate: Rate) {
        let [beta1, beta2] = self.betas;
        let step = rate.lr / (1.0 - beta1.powf(updates as f64));
        let root = (1.0 - beta2.powf(updates as f64)).sqrt();
        let (keep, step, root) = ((1.0 - rate.lr * rate.weight_decay) as f32, step as f32, root as f32);
        let (beta1, beta2, eps) = (beta1 as f32, beta2 as f32, self.eps as f32);
        let moments = moments.first.iter_mut().zip(&mut moments.second);
        for ((value, &g), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            *first += (1.0 - beta1) * (g - *first);
            *second = beta2 * *second + (1.0 - beta2) * g * g;
            *value = *value * keep - step * *first / (second.sqrt() / root + eps);
        }
    }
}

/// The rate and the decay of one parameter in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// The learning rate.
    pub lr: f64,
    /// What the value loses per step is `lr` times this.
    pub weight_decay: f64,
}

/// What an optimizer remembers of one parameter. Muon has no second moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// The running mean of the gradient.
    pub first: Vec<f32>,
    /// The running mean of its square.
    pub second: Vec<f32>,
}

/// All trainable parameters with their moments.
#[derive(Debug)]
pub struct Optimizer {
    adamw: AdamW,
    muon: Option<Muon>,
    members: Vec<Member>,
    updates: u64,
}

#[derive(Debug)]
struct Member {
    name: String,
    var: Var,
    rule: Rule,
    /// At the full rate; the schedule scales it.
    rate: Rate,
    moments: Moments,
}

impl Optimizer {
    /// For these parameters, with nothing remembered yet.
    pub fn new(config: &OptimizerConfig, parameters: Vec<(String, Var)>) -> Self {
        let members = parameters.into_iter().map(|(name, var)| Member::new(config, name, var)).collect();
        Self { adamw: config.adamw.clone(), muon: config.muon.clone(), members, updates: 0 }
    }

    /// The parameters, in the order in which [`Self::step`] wants their gradients.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = (&str, &Var)> {
        self.members.iter().map(|member| (member.name.as_str(), &member.var))
    }

    /// Which rule each parameter follows.
    pub fn rules(&self) -> impl Iterator<Item = (&str, Rule)> {
        self.members.iter().map(|member| (member.name.as_str(), member.rule))
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Changes every parameter that has a gradient, in parallel on the current thread pool; `factor` is the
    /// schedule's. Others stay as they are, as in PyTorch: without a gradient there is nothing to decay or to go on
    /// with.
    pub fn step(&mut self, gradients: &[Option<Vec<f32>>], factor: f64) -> Result<()> {
        self.updates += 1;
        let (adamw, muon, updates) = (&self.adamw, self.muon.as_ref(), self.updates);
        self.members.par_iter_mut().zip(gradients).try_for_each(|(member, gradient)| {
            let Some(gradient) = gradient else { return Ok(()) };
            let rate = Rate { lr: member.rate.lr * factor, ..member.rate };
            let mut values = member.var.flatten_all()?.to_vec1::<f32>()?;
            match (member.rule, muon) {
                (Rule::Muon, Some(muon)) => {
                    muon.update(
                        &mut values,
                        gradient,
                        &mut member.moments.first,
                        muon::matrix(member.var.dims()),
                        rate,
                    )?;
                }
                _ => adamw.update(&mut values, gradient, &mut member.moments, updates, rate),
            }
            member.var.set(&Tensor::from_vec(values, member.var.shape(), member.var.device())?)?;
            Ok(())
        })
    }

    /// The moments as tensors, `first.NAME` and `second.NAME`, for a checkpoint.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for member in &self.members {
            for (kind, moment) in [("first", &member.moments.first), ("second", &member.moments.second)] {
                if !moment.is_empty() {
                    let tensor = Tensor::from_slice(moment, member.var.shape(), &Device::Cpu)?;
                    state.insert(format!("{kind}.{}", member.name), tensor);
                }
            }
        }
        Ok(state)
    }

    /// Takes the moments back; `updates` is how often the parameters were changed.
    ///
    /// # Errors
    /// If one is missing or of another size.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        for member in &mut self.members {
            let name = &member.name;
            for (kind, moment) in [("first", &mut member.moments.first), ("second", &mut member.moments.second)] {
                if moment.is_empty() {
                    continue;
                }
                let key = format!("{kind}.{name}");
                let tensor = state.get(&key).ok_or_else(|| TrainError::checkpoint(&key, "the moment is missing"))?;
                if tensor.elem_count() != moment.len() {
                    let message = format!("{} values, expected {}", tensor.elem_count(), moment.len());
                    return Err(TrainError::checkpoint(&key, message));
                }
                *moment = tensor.flatten_all()?.to_vec1()?;
            }
        }
        self.updates = updates;
        Ok(())
    }
}

impl Member {
    fn new(config: &OptimizerConfig, name: String, var: Var) -> Self {
        let group = config.groups.iter().find(|group| name.starts_with(&group.prefix));
        let natural =
            if config.muon.is_some() && is_hidden_matrix(&name, var.dims()) { Rule::Muon } else { Rule::Adamw };
        let rule = match group.and_then(|group| group.rule) {
            Some(Rule::Muon) if config.muon.is_some() && var.rank() >= 2 => Rule::Muon,
            Some(Rule::Adamw) => Rule::Adamw,
            _ => natural,
        };
        let (lr, decay) = match (rule, &config.muon) {
            (Rule::Muon, Some(muon)) => (muon.lr, muon.weight_decay),
            _ if var.rank() < 2 => (config.adamw.lr, config.adamw.vector_weight_decay),
            _ => (config.adamw.lr, config.adamw.weight_decay),
        };
        let rate = Rate {
            lr: lr * group.map_or(1.0, |group| group.lr_scale),
            weight_decay: group.and_then(|group| group.weight_decay).unwrap_or(decay),
        };
        let (count, second) = (var.elem_count(), if rule == Rule::Adamw { var.elem_count() } else { 0 });
        let moments = Moments { first: vec![0.0; count], second: vec![0.0; second] };
        Self { name, var, rule, rate, moments }
    }
}

/// Matrices and kernels between hidden activations. Embeddings, output layers and the first layer of
/// the tower are not: there a direction is a word, a class or a pixel.
fn is_hidden_matrix(name: &str, shape: &[usize]) -> bool {
    let edge = name.starts_with("aux.")
        || ["embed_tokens", "lm_head", "position_embedding", "patch_embedding", "class_embedding", "pos_embedd.0"]
            .iter()
            .any(|part| name.contains(part));
    shape.len() >= 2 && !edge
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::muon::MuonScale;

    const VALUES: [[f32; 3]; 2] = [[0.5, -1.0, 2.0], [0.25, 0.0, -0.75]];
    const GRADIENTS: [[[f32; 3]; 2]; 3] = [
        [[0.1, -0.2, 0.3], [1.0, -0.5, 0.05]],
        [[-0.4, 0.1, 0.2], [0.3, 0.6, -0.1]],
        [[0.05, 0.0, -0.25], [-0.9, 0.2, 0.15]],
    ];

    fn adamw() -> AdamW {
        AdamW { lr: 0.1, betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.2, vector_weight_decay: 0.0 }
    }

    fn muon() -> Muon {
        Muon { lr: 0.1, momentum: 0.95, iterations: 5, weight_decay: 0.2, scale: MuonScale::Spectral }
    }

    /// The values after the three steps of `reference/optimizer_golden.py`.
    fn three_steps(config: &OptimizerConfig, transposed: bool) -> Vec<f32> {
        let matrix = |values: &[[f32; 3]; 2]| {
            let matrix = Tensor::new(values, &Device::Cpu).unwrap();
            if transposed { matrix.t().unwrap().contiguous().unwrap() } else { matrix }
        };
        let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let var = Var::from_tensor(&matrix(&VALUES)).unwrap();
        let mut optimizer = Optimizer::new(config, vec![("model.layers.0.w".into(), var.clone())]);
        for gradient in &GRADIENTS {
            optimizer.step(&[Some(flat(&matrix(gradient)))], 1.0).unwrap();
        }
        assert_eq!(optimizer.updates(), 3);
        flat(&var)
    }

    fn assert_close(got: &[f32], expected: [f32; 6], tolerance: f32) {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < tolerance, "{got}, expected {expected}");
        }
    }

    #[test]
    fn adamw_steps_as_pytorch_does() {
        let expected = [0.464_414_06, -0.798_227_7, 1.665_836_1, 0.046_707_05, 0.055_398_82, -0.800_296_07];
        let config = OptimizerConfig { adamw: adamw(), muon: None, groups: Vec::new() };
        assert_close(&three_steps(&config, false), expected, 1e-6);
    }

    #[test]
    fn muon_steps_as_its_authors_code_does() {
        let config = OptimizerConfig { adamw: adamw(), muon: Some(muon()), groups: Vec::new() };
        let wide = [0.553_823, -0.911_050_5, 1.752_487_5, 0.159_990_88, -0.065_952_72, -0.749_262_33];
        assert_close(&three_steps(&config, false), wide, 1e-5);
        let tall = [0.572_527_8, 0.143_066_06, -0.904_276_3, -0.080_775_25, 1.723_293_9, -0.759_009_06];
        assert_close(&three_steps(&config, true), tall, 1e-5);
    }

    #[test]
    fn a_parameter_without_a_gradient_stays() {
        let config = OptimizerConfig { adamw: adamw(), muon: Some(muon()), groups: Vec::new() };
        let of = |value: f32| Var::from_tensor(&Tensor::full(value, (2, 3), &Device::Cpu).unwrap()).unwrap();
        let (reached, left) = (of(1.0), of(2.0));
        let named = [("model.layers.0.a", &reached), ("model.layers.0.b", &left)];
        let named = named.map(|(name, var)| (name.to_owned(), var.clone())).into();
        let mut optimizer = Optimizer::new(&config, named);
        optimizer.step(&[Some(vec![1.0; 6]), Some(vec![1.0; 6])], 1.0).unwrap();
        let values = |var: &Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let before = [values(&reached), values(&left)];
        optimizer.step(&[Some(vec![1.0; 6]), None], 1.0).unwrap();
        assert_ne!(values(&reached), before[0]);
        assert_eq!(values(&left), before[1]);
    }

    #[test]
    fn hidden_matrices_follow_muon_and_exceptions_hold() {
        let group = |prefix: &str, rule| Group { prefix: prefix.into(), lr_scale: 0.5, weight_decay: Some(0.0), rule };
        let groups = vec![group("model.layers.1.", Some(Rule::Adamw)), group("model.norm", Some(Rule::Muon))];
        let config = OptimizerConfig { adamw: adamw(), muon: Some(muon()), groups };
        let cases: [(&str, &[usize], Rule, f64, f64); 6] = [
            ("model.layers.0.mlp.up_proj.weight", &[4, 2], Rule::Muon, 0.1, 0.2),
            ("model.spi_module.roi_align.pconvs.0.weight", &[2, 2, 3, 3], Rule::Muon, 0.1, 0.2),
            ("model.embed_tokens.weight", &[4, 2], Rule::Adamw, 0.1, 0.2),
            ("vision_model.encoder.layers.0.mlp.fc1.bias", &[4], Rule::Adamw, 0.1, 0.0),
            ("model.layers.1.mlp.up_proj.weight", &[4, 2], Rule::Adamw, 0.05, 0.0),
            ("model.norm.weight", &[4], Rule::Adamw, 0.05, 0.0), // Muon is for matrices, whatever a group says
        ];
        for (name, shape, rule, lr, weight_decay) in cases {
            let var = Var::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
            let member = Member::new(&config, name.into(), var);
            assert_eq!((member.rule, member.rate), (rule, Rate { lr, weight_decay }), "{name}");
        }
    }
}
