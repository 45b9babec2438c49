"""What is defined for tasks of two classes alone."""

from tl_skillneurons._checks import require_int
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


def require_class(task: Task, class_id: int | None) -> int:
    """Which class stands against the others: of two classes class 1, unless another is asked for.

    Raises:
        ValueError: For a task of more classes where nobody says which, or a class that it doesn't have.

    Example:
        >>> require_class(skn.minimal_pairs("movie_reviews"), None)
        1
    """
    if class_id is None:
        if task.n_classes > 2:
            raise ValueError(
                f"labels are told apart as one class against the others, and {task.name!r} has {task.n_classes} "
                f"classes ({', '.join(map(repr, task.label_names))}); give class_id=0 to {task.n_classes - 1}"
            )
        return 1
    if require_int(class_id, "class_id", minimum=0) >= task.n_classes:
        raise ValueError(f"class_id must be 0 to {task.n_classes - 1} for {task.name!r}, got {class_id}")
    return class_id
