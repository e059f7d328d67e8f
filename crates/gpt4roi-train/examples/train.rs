//! Trains one stage from the command line: `train STAGE.toml --out DIR [--resume] [--steps N] [--init DIR]`.
#![allow(clippy::print_stderr)]

use std::{ops::ControlFlow, path::Path, time::Instant};

use gpt4roi_train::{Progress, StageConfig, config::Source, log::Record, open};

struct Lines;

impl Progress for Lines {
    fn started(&mut self, stage: &str, step: u64, steps: u64) {
        eprintln!("{stage}: step {step} of {steps}");
    }

    fn record(&mut self, record: &Record) -> ControlFlow<()> {
        let metrics: Vec<String> = record.metrics.iter().map(|(name, mean)| format!("{name} {mean:.4}")).collect();
        eprintln!(
            "{:6} {:7.0} s  loss {:.4}  lr {:.3}  |g| {:.3}  {:.1}/s  {}{}",
            record.step,
            record.seconds,
            record.loss,
            record.lr_factor,
            record.grad_norm,
            record.pictures_per_second,
            metrics.join("  "),
            if record.skipped > 0 { format!("  skipped {}", record.skipped) } else { String::new() },
        );
        ControlFlow::Continue(())
    }

    fn checkpoint(&mut self, path: &Path) {
        eprintln!("wrote {}", path.display());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: train STAGE.toml --out DIR [--resume] [--steps N] [--init DIR]")?;
    let mut stage = StageConfig::open(path)?;
    let (mut out, mut resume) = (None, false);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--out" => out = Some(value()?),
            "--resume" => resume = true,
            "--steps" => stage.steps = value()?.parse()?,
            "--init" => stage.init.from.push(Source { path: value()?.into(), take: Vec::new() }),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    let out = out.ok_or("--out is missing")?;
    let mut trainer = open(stage, &out)?;
    if resume {
        match trainer.resume()? {
            Some(path) => eprintln!("goes on from {}", path.display()),
            None => eprintln!("no checkpoint below {out}, begins anew"),
        }
    }
    let start = Instant::now();
    trainer.run(&|| start.elapsed(), &mut Lines)?;
    Ok(())
}
