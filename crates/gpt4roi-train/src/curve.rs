//! The loss over the steps as an SVG picture.

use std::path::Path;

use plotters::prelude::*;

use crate::{
    checkpoint::replace,
    error::{Result, TrainError},
    log::Record,
};

/// Points drawn at most; a longer log is averaged in stretches.
const POINTS: usize = 400;

/// Draws the loss of `records` under `title` to `path`.
pub fn draw(path: &Path, title: &str, records: &[Record]) -> Result<()> {
    let points = averaged(records);
    if points.len() < 2 {
        return Ok(());
    }
    let mut svg = String::new();
    render(&mut svg, title, &points)
        .map_err(|error| TrainError::Curve { path: path.into(), message: error.to_string() })?;
    replace(path, svg.as_bytes())
}

/// Means of equal stretches: (last step, loss).
fn averaged(records: &[Record]) -> Vec<(f64, f64)> {
    let finite: Vec<_> = records.iter().filter(|record| record.loss.is_finite()).collect();
    let stretch = finite.len().div_ceil(POINTS).max(1);
    let mean = |records: &[&Record]| {
        let last = records.last().map_or(0.0, |record| record.step as f64);
        (last, records.iter().map(|record| record.loss).sum::<f64>() / records.len() as f64)
    };
    finite.chunks(stretch).map(mean).collect()
}

fn render(svg: &mut String, title: &str, points: &[(f64, f64)]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let top = points.iter().map(|point| point.1).fold(f64::MIN, f64::max);
    let area = SVGBackend::with_string(svg, (800, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(first..last.max(first + 1.0), 0.0..top * 1.05)?;
    chart.configure_mesh().x_desc("step").y_desc("loss").x_label_formatter(&|step| format!("{step:.0}")).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), RGBColor(33, 102, 172).stroke_width(2)))?;
    area.present()?;
    Ok(())
}
