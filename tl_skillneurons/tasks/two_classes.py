"""What is defined for tasks of two classes alone."""

from tl_skillneurons.tasks.task import Task


def require_two_classes(task: Task) -> None:
    """Refuse a task that predictivity is not defined for.

    Raises:
        ValueError: When the task has more than two classes.

    Example:
        >>> require_two_classes(skn.minimal_pairs("movie_reviews"))
    """
    if task.n_classes != 2:
        raise ValueError(
            f"predictivity is defined for two classes, {task.name} has {task.n_classes}; "
            "score each of task.binary_subtasks() with prompts of its own, or each class by score_classes"
        )
