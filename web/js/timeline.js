// A picture on Wan Sigmas and Sample Wan Experts: the noise level of each step in the colour of its
// expert. Dragging the line between the experts sets switch = step and switch_step.
import { app } from "../../../scripts/app.js"
import { addDrawn } from "./drawn.js"
import { OWN_BOUNDARY, boundaryOf, makeSchedule, stagesOf } from "./schedule.js"

const NODES = ["WanExpertsSchedule", "WanExpertsSampler"]
const HEIGHT = 108
const COLOURS = { high: "#f5a04c", low: "#4fa8f7", motion: "#4fd1a1" } // As in nodes/host/picture.py.
const WORDS = {
  en: {
    high: "high noise", low: "low noise", motion: "motion", step: "step", of: "of",
    hint: "drag the line to move the switch", assumed: "auto, if the MODEL divides at",
    linked: "values come over links: see the plan of the run",
    preset: "the preset decides: see the plan of the run",
    unknown: "noise levels of ComfyUI's own: see the plan of the run",
    steps: "steps do not fit this schedule", list: "timesteps: no descending list",
    switch: "the switch divides no two steps", order: "motion_until is below the switch",
  },
  zh: {
    high: "高噪", low: "低噪", motion: "运动", step: "步", of: "/",
    hint: "拖动竖线以移动切换点", assumed: "自动，假定模型分界为",
    linked: "数值来自连线：请看运行计划", preset: "由预设决定：请看运行计划",
    unknown: "ComfyUI 自带的噪声表：请看运行计划",
    steps: "步数不适合此噪声表", list: "timesteps 不是递减列表",
    switch: "切换点不在两步之间", order: "motion_until 低于切换点",
  },
}
const AS_BELOW = "as below"
const SVG = "http://www.w3.org/2000/svg"

const words = () => WORDS[app.ui.settings.getSettingValue("Comfy.Locale")] ?? WORDS.en
const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)
const isLinked = (node, name) =>
  (node.inputs ?? []).some((input) => input.link != null && (input.widget?.name ?? input.name) === name)

// What the node's widgets say, as {names, steps, sigmas, timesteps, stages}; throws a key of WORDS.
function planOf(node) {
  const read = (name, fallback) => widgetOf(node, name)?.value ?? fallback
  const names = ["steps", "scheduler", "sigma_shift", "switch", "boundary", "switch_step", "switch_value", "timesteps", "motion_until"]
  if (read("preset", AS_BELOW) !== AS_BELOW) throw new Error("preset")
  if (names.some((name) => isLinked(node, name))) throw new Error("linked")
  const schedule = makeSchedule({
    scheduler: read("scheduler"), steps: read("steps"), shift: read("sigma_shift"), timesteps: read("timesteps", ""),
  })
  const place = { kind: read("switch"), boundary: read("boundary"), step: read("switch_step"), value: read("switch_value") }
  const boundaries = [boundaryOf(schedule, place), 0]
  const hasMotion = isLinked(node, "model_motion")
  if (hasMotion) boundaries.unshift(read("motion_until") / 1000)
  return {
    ...schedule, boundaries,
    names: hasMotion ? ["motion", "high", "low"] : ["high", "low"],
    // Only a run knows the MODEL: one that takes an image divides elsewhere.
    isAssumed: place.kind === "auto" && ["model", "model_high_noise"].some((name) => isLinked(node, name)),
    stages: stagesOf(schedule, boundaries),
  }
}

function element(kind, attributes, parent) {
  const made = document.createElementNS(SVG, kind)
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
  parent?.append(made)
  return made
}

class Timeline {
  constructor(node) {
    this.node = node
    this.box = document.createElement("div")
    this.box.className = "wan-timeline"
    this.box.style.cssText = "display:flex;flex-direction:column;gap:2px;width:100%;font:11px sans-serif;color:var(--input-text,#ddd)"
    this.svg = element("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" })
    this.svg.style.cssText = "flex:none;height:68px;width:100%;background:var(--comfy-input-bg,#222);border-radius:4px;cursor:ew-resize;touch-action:none"
    this.line = document.createElement("div")
    this.line.style.cssText = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis;text-align:center"
    this.box.append(this.svg, this.line)
    this.svg.addEventListener("pointerdown", (event) => this.grab(event))
    this.svg.addEventListener("pointermove", (event) => this.point(event))
    this.svg.addEventListener("pointerleave", () => this.draw())
  }

  draw() {
    this.svg.replaceChildren()
    try {
      this.plan = planOf(this.node)
    } catch (error) {
      this.plan = null
      this.line.textContent = words()[error.message] ?? error.message
      return
    }
    const { sigmas, stages, names } = this.plan
    const count = stages.length
    names.forEach((name, index) => {
      const own = sigmas.slice(0, count).map((sigma, i) => (stages[i] === index ? sigma : 0))
      const bars = own.map((sigma, i) => `M${i / count} 1V${1 - 0.94 * sigma}H${(i + 0.92) / count}V1Z`)
      element("path", { d: bars.join(""), fill: COLOURS[name] }, this.svg)
    })
    const at = this.switchStep() / count
    element("line", { x1: at, x2: at, y1: 0, y2: 1, stroke: "var(--input-text,#fff)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }, this.svg)
    const counts = names.map((name, index) => `${stages.filter((stage) => stage === index).length} ${words()[name]}`)
    if (this.plan.isAssumed) counts.push(`${words().assumed} ${OWN_BOUNDARY}`)
    this.say(counts.join(" · "))
  }

  say(text) {
    this.line.textContent = text
    this.line.title = words().hint
  }

  // How many steps come before the low-noise expert.
  switchStep() {
    const last = this.plan.names.length - 1
    return this.plan.stages.filter((stage) => stage < last).length
  }

  stepAt(event, round) {
    const { left, width } = this.svg.getBoundingClientRect()
    const count = this.plan.stages.length
    return Math.max(0, Math.min(count, round(((event.clientX - left) / width) * count)))
  }

  point(event) {
    if (!this.plan) return
    if (this.svg.hasPointerCapture(event.pointerId)) return this.move(event)
    const { sigmas, timesteps, stages, names } = this.plan
    const step = Math.min(this.stepAt(event, Math.floor), stages.length - 1)
    const { step: called, of, [names[stages[step]]]: stage } = words()
    this.say(`${called} ${step + 1} ${of} ${stages.length}: σ ${sigmas[step].toFixed(4)}, t ${+timesteps[step].toFixed(2)}, ${stage}`)
  }

  grab(event) {
    if (!this.plan || event.button !== 0) return
    event.preventDefault()
    this.svg.setPointerCapture(event.pointerId)
    this.move(event)
  }

  move(event) {
    const motion = this.plan.names[0] === "motion" ? this.plan.stages.filter((stage) => stage === 0).length : 0
    this.set("switch", "step")
    this.set("switch_step", Math.max(motion, this.stepAt(event, Math.round)))
    this.node.graph?.setDirtyCanvas(true, true)
  }

  set(name, value) {
    const widget = widgetOf(this.node, name)
    if (widget.value === value) return
    widget.value = value
    widget.callback?.(value, app.canvas, this.node)
  }
}

function chain(owner, name, after) {
  const own = owner[name]
  owner[name] = function (...given) {
    const told = own?.apply(this, given)
    after()
    return told
  }
}

app.registerExtension({
  name: "WanExperts.Timeline",
  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return
    const timeline = new Timeline(node)
    const draw = () => timeline.draw()
    for (const widget of node.widgets ?? []) chain(widget, "callback", draw)
    for (const event of ["onConfigure", "onConnectionsChange", "onAdded"]) chain(node, event, draw)
    const size = { getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT }
    addDrawn(node, "timeline", timeline.box, { ...size, hideOnZoom: false })
    draw()
  },
})
