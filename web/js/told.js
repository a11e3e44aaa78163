// What a node has to tell stays visible on it: format cards, LoRA coverage, the plan of a run. Without
// JavaScript the same text comes out of its STRING output.
import { app } from "../../../scripts/app.js"
import { addDrawn } from "./drawn.js"
import "./timeline.js" // The picture comes first on a node that has both.

const EMPTY = {
  WanExpertsLoader: ["What the files hold: shown after a run", "文件内容：运行后显示"],
  WanExpertsLora: ["What the LoRAs change: shown after a run", "LoRA 的作用范围：运行后显示"],
  WanExpertsSampler: ["The plan of the run: shown after it", "运行计划：运行后显示"],
  WanExpertsPlan: ["The plan of the run: shown here", "运行计划：显示于此"],
  WanExpertsVerify: ["What differs: shown here", "差异：显示于此"],
}
const HEIGHT = 72

app.registerExtension({
  name: "WanExperts.Told",
  nodeCreated(node) {
    const placeholder = EMPTY[node.comfyClass]
    if (!placeholder) return
    const area = document.createElement("textarea")
    area.className = "comfy-multiline-input wan-told"
    area.readOnly = true
    area.wrap = "off"
    area.style.cssText = "font:11px monospace;resize:none;opacity:0.9;width:100%;height:100%;min-height:52px"
    const isChinese = app.ui.settings.getSettingValue("Comfy.Locale") === "zh"
    area.placeholder = placeholder[Number(isChinese)]
    addDrawn(node, "told", area, { getMinHeight: () => HEIGHT })
    const own = node.onExecuted
    node.onExecuted = function (output) {
      own?.apply(this, arguments)
      if (output?.text) area.value = [output.text].flat().join("\n")
    }
  },
})
