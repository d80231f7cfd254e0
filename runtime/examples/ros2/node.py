"""A ROS 2 node: sensor_msgs/Image in, a label image and vision_msgs/Detection2DArray out.

    python node.py --ros-args -p model:=best.onnx -p confidence:=0.5 -r image:=/camera/image_raw

Topics: `image` in; `~/labels` (mono8, or mono16 beyond 255 instances; 0 is background) and
`~/detections` out. A detection's id is its value in the label image. Stamp and frame_id of the
image pass through untouched. The subscription keeps one image only, so a slow model drops frames
instead of falling behind.
"""

from __future__ import annotations

import sys

import rclpy
from messages import boxes, frame_of_image, label_image
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

from boxseg.runtime import Segmenter

NEWEST = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
)


class SegmenterNode(Node):
    """Answers every image that it gets in time."""

    def __init__(self) -> None:
        super().__init__("boxseg")
        model = self.declare_parameter("model", "best.onnx").value
        confidence = self.declare_parameter("confidence", 0.5).value
        self._segment = Segmenter(model, conf=confidence)
        self._labels = self.create_publisher(Image, "~/labels", 1)
        self._detections = self.create_publisher(Detection2DArray, "~/detections", 1)
        self.create_subscription(Image, "image", self._answer, NEWEST)

    def _answer(self, image: Image) -> None:
        try:
            frame, colour = frame_of_image(
                image.data,
                height=image.height,
                width=image.width,
                step=image.step,
                encoding=image.encoding,
            )
        except ValueError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        found = self._segment(frame, colour=colour)

        labels = Image(header=image.header, height=image.height, width=image.width)
        labels.data, labels.encoding, labels.step = label_image(found)
        labels.is_bigendian = sys.byteorder == "big"
        self._labels.publish(labels)

        answer = Detection2DArray(header=image.header)
        for box in boxes(found):
            detection = Detection2D(header=image.header, id=str(box.identity))
            detection.bbox.center.position.x = box.centre_x
            detection.bbox.center.position.y = box.centre_y
            detection.bbox.size_x = box.width
            detection.bbox.size_y = box.height
            hypothesis = ObjectHypothesisWithPose()
            hypothesis.hypothesis.class_id = box.label
            hypothesis.hypothesis.score = box.score
            detection.results.append(hypothesis)
            answer.detections.append(detection)
        self._detections.publish(answer)


def main() -> None:
    """Run until interrupted."""
    rclpy.init()
    node = SegmenterNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
