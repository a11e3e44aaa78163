// Nodes drawn by Vue take what a node without a VIDEO input shows for a picture, unless it says what it is.
import { app } from "../../../scripts/app.js"

app.registerExtension({
  name: "WanExperts.Clip",
  nodeCreated(node) {
    if (node.comfyClass !== "WanExpertsDecodeToVideo") return
    const own = node.onExecuted
    node.onExecuted = function (output) {
      own?.apply(this, arguments)
      if (output?.images) this.previewMediaType = output.animated?.[0] ? "video" : "image"
    }
  },
})
